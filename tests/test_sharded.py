"""FSDP2 on two CPU processes: a run goes on with it, without it and from shards as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import TASKS, ark, write_recipe
from safetensors.torch import load_file
from test_ranks import MASKS, ark_on
from tracing import traced_losses

from ark.balance import GradNorm
from ark.cycle import Cycle, Phase
from ark.distributed.fsdp import check_supported
from ark.module import ArkModule, BackboneConfig
from ark.surgery import PCGrad
from ark.types import ConfigError
from toys import SIZE, make_task

FILE = "--trainer.strategy=fsdp2"
SHARDS = (
    '--trainer.strategy={"class_path": "ark.distributed.fsdp.ShardedStrategy", '
    '"init_args": {"save_distributed_checkpoint": true}}'
)
DDP = "--trainer.strategy=ddp"
STEPS = 24


def recipe_of(folder: Path) -> Path:
    """No BatchNorm, no dropout; SGD's momentum and a clipped gradient would show a wrong resume."""
    folder.mkdir(exist_ok=True)
    return write_recipe(
        folder,
        data={"image_size": 64, "batch_size": 4, "workers": 0, "heads": {"segmentation": MASKS}},
        model={
            "backbone": {"name": "test_convnext"},
            "projector": {"width": 16},
            "optimizer": {
                "class_path": "torch.optim.SGD",
                "init_args": {"lr": 0.01, "momentum": 0.9},
            },
            "clip": {"detection": 0.5, "segmentation": 0.5},
        },
        run={
            "root": str(folder),
            "name": "run",
            "wandb": "off",
            "pictures": 0,
            "baseline": False,
            "checkpoint_every": 4,
        },
    )


def fit(folder: Path, ranks: int, trace: str, *options: str) -> dict[int, float]:
    """The losses of a session's steps."""
    callback = {"class_path": "tracing.Trace", "init_args": {"folder": str(folder / trace)}}
    args = ["fit", "--config", recipe_of(folder), "--ckpt_path=auto"]
    args += [f"--trainer.callbacks=[{callback}]", *options]
    ark(*args) if ranks == 1 else ark_on(ranks, *args)
    return traced_losses(folder / trace)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Any]:
    folder = tmp_path_factory.mktemp("whole")
    losses = fit(folder, 1, "trace")
    assert sorted(losses) == list(range(STEPS))
    return losses, load_file(folder / "run" / "model" / "teacher.safetensors")


@pytest.mark.slow
@pytest.mark.xdist_group("sharded")
@pytest.mark.parametrize("strategies", [(FILE, DDP, FILE), (SHARDS, SHARDS)])
def test_it_goes_on_and_learns_the_same(whole, strategies: tuple[str, ...], tmp_path: Path) -> None:
    losses, expected = whole
    for number, strategy in enumerate(strategies):
        last = number == len(strategies) - 1
        stop = [] if last else [f"--trainer.max_steps={8 * (number + 1)}"]
        found = fit(tmp_path, 2, f"trace{number}", strategy, *stop)
        assert min(found) == 8 * number
        for step, loss in found.items():
            assert loss == pytest.approx(losses[step], rel=1e-4), (strategy, step)
    saved = tmp_path / "run" / "checkpoints"
    assert (
        (saved / "last.ckpt").is_dir()
        == (saved / "previous.ckpt").is_dir()
        == (strategies[-1] == SHARDS)
    )
    found = load_file(tmp_path / "run" / "model" / "teacher.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    if strategies[-1] == SHARDS:
        facts = dcp.FileSystemReader(saved / "last.ckpt").read_metadata().state_dict_metadata
        split = [name for name, tensor in facts.items() if len(tensor.chunks) == 2]
        for part in ("state_dict\nnetwork.backbone", "state_dict\nteacher", "optimizer_states"):
            assert any(name.startswith(part) for name in split), part
        said = ark_on(2, "fit", "--config", recipe_of(tmp_path), "--ckpt_path=last", DDP, code=2)
        assert "is a folder of shards; go on with --trainer.strategy=fsdp2" in said
        (saved / "last.ckpt" / ".metadata").unlink()
        said = ark_on(2, "fit", "--config", recipe_of(tmp_path), "--ckpt_path=last", SHARDS)
        assert "is damaged: .metadata: No such file or directory; going on from" in said


@pytest.mark.slow
@pytest.mark.xdist_group("sharded")
def test_a_run_grows_on_shards_as_on_one_process(tmp_path: Path) -> None:
    """Heads that are there and a new one; the teacher of the sharded run starts there too."""
    old = tmp_path / "old"
    fit(old, 1, "trace", "--trainer.max_steps=2", f"--data.only={TASKS[:1]}")
    grow = ["--trainer.max_steps=4", f"--init_from={old / 'run'}", f"--data.only={TASKS[:2]}"]
    expected = fit(tmp_path / "one", 1, "trace", *grow)
    found = fit(tmp_path / "two", 2, "trace", *grow, FILE)
    assert found == {step: pytest.approx(loss, rel=1e-5) for step, loss in expected.items()}
    tables = [(tmp_path / name / "run" / "growth.md").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    one, two = (load_file(tmp_path / n / "run/model/teacher.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("surgery", {"surgery": PCGrad()}),
        ("balance", {"balance": GradNorm}),
        ("norm_penalty", {"norm_penalty": {"backbone": 1e-4}}),
    ],
)
def test_what_wants_whole_gradients_is_refused(setting: str, options: dict[str, Any]) -> None:
    tasks = [make_task("multilabel"), make_task("multiclass")]
    cycle = Cycle([Phase(tasks=[task.key for task in tasks], steps=1)], [1], cycles=1)
    backbone = BackboneConfig("test_efficientnet")
    with pytest.raises(ConfigError, match=rf"model.{setting}: reads whole gradients"):
        check_supported(ArkModule(tasks, cycle, SIZE, backbone, **options))
    check_supported(ArkModule(tasks, cycle, SIZE, backbone))
