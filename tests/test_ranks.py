"""Several processes: the same samples in the same order, evaluation whole and without a hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import DATASETS, TASKS, ark, losses, write_recipe
from tracing import traced, traced_losses

from ark.run import RunConfig

TESTS = Path(__file__).parent
MASKS = {  # every rank draws its own dropout
    "class_path": "heads.segmentation.SegmentationHead",
    "init_args": {"decoder_args": {"dropout": 0.0}},
}
ROUNDING = 1e-5  # of float32 sums in another order, over the steps of a run


def ark_on(ranks: int, *args: object, code: int | None = 0) -> str:
    """`ark ARGS` on `ranks` CPU processes; what it printed.

    Args:
        code: the exit code that is expected; None: any but 0.
    """
    options = [f"--trainer.devices={ranks}", "--trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "ark", *map(str, args), *options]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # a hang fails here
    )
    expected = done.returncode == code if code is not None else done.returncode != 0
    assert expected, done.stderr[-30000:]
    return done.stdout + done.stderr


def fit(recipe: Path, ranks: int, name: str, trace: Path, *more: object) -> str:
    callback = {"class_path": "tracing.Trace", "init_args": {"folder": str(trace)}}
    args = ["fit", "--config", recipe, f"--run.name={name}", f"--trainer.callbacks=[{callback}]"]
    if ranks == 1:  # needs no process of its own, which would import all anew
        ark(*args, *more)
        return ""
    return ark_on(ranks, *args, *more)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Splits of 12, 3 and 5 samples: fewer than 4 ranks can share evenly, or at all."""
    path = write_recipe(
        tmp_path,
        data={"image_size": 64, "batch_size": 4, "workers": 0, "eval_batch_size": 1},
        run={
            "root": str(tmp_path / "runs"),
            "wandb": "off",
            "pictures": 1,
            "baseline": False,
            "checkpoint_every": 4,
        },
    )
    for name in DATASETS:
        config = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        config["source"]["init_args"] |= {"val": 3, "test": 5}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_run_goes_on_at_another_world_size(recipe: Path, tmp_path: Path) -> None:
    alike = [  # whatever the ranks: no BatchNorm, no dropout, no division by a rounded gradient
        "--model.backbone.name=test_convnext",
        f"--data.heads={{segmentation: {MASKS}}}",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.01",
    ]
    fit(recipe, 1, "one", tmp_path / "one", *alike)
    expected, minimised = traced(tmp_path / "one"), traced_losses(tmp_path / "one")
    assert sorted(expected) == list(range(24))
    said = fit(recipe, 2, "moved", tmp_path / "two", *alike, "--trainer.max_steps=10")
    assert said.count("ledger: every sample") == 1
    goes_on = [*alike, "--ckpt_path=last"]
    fit(recipe, 1, "moved", tmp_path / "single", *goes_on, "--trainer.max_steps=18")
    fit(recipe, 4, "moved", tmp_path / "four", *goes_on, "--data.workers=2")
    steps = {"two": range(10), "single": range(8, 18), "four": range(16, 24)}
    for name, expected_steps in steps.items():
        found = traced(tmp_path / name)
        assert sorted(found) == list(expected_steps)
        assert all(samples == expected[step] for step, samples in found.items())
        for step, loss in traced_losses(tmp_path / name).items():
            assert loss == pytest.approx(minimised[step], rel=ROUNDING), step
    logged = losses(tmp_path / "runs" / "one")
    assert losses(tmp_path / "runs" / "moved") == pytest.approx(logged, rel=ROUNDING)


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_ranks(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    ark("fit", "--config", recipe, "--run.name=run")
    run = RunConfig(name="run", root=str(tmp_path / "runs"))
    assert set(json.loads((run.folder / "results.json").read_text())["student"]) == set(TASKS)
    for split in ("validate", "test"):
        command = (split, "--config", recipe, "--run.name=run", "--ckpt_path=last")
        capsys.readouterr()
        ark(*command)
        expected = table("".join(capsys.readouterr()))
        assert len(expected) > 20
        assert table(ark_on(4, *command)) == expected  # 3 samples on 4 ranks: one has none


def table(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("|")]
