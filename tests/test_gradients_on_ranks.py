"""On N ranks each optimiser step has the gradient that one process has of the same batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TASKS, write_recipe
from test_ranks import MASKS, ark_on

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gradients on ranks")]

PHASES = [
    *({"task": task, "lock": ["backbone"], "steps": 1} for task in TASKS),
    *({"task": task, "steps": 1} for task in TASKS),
    {"tasks": ["all"], "steps": 2},
    {"task": TASKS[1], "train": ["head"], "steps": 1},
]
ROUNDING = 3e-6  # of float32 sums in another order; at most 1.2e-6 was seen
FROZEN = [{"task": task, "lock": ["backbone"], "steps": 1} for task in TASKS]


def gradients(
    folder: Path,
    ranks: int,
    *options: object,
    backbone: str = "test_convnext",  # no BatchNorm
    phases: Sequence[Mapping[str, Any]] = PHASES,
) -> list[dict[str, torch.Tensor]]:
    """Of each step of a run; the same on all ranks, as are student and teacher at its end."""
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(
        folder,
        data={"image_size": 64, "batch_size": 8, "workers": 0, "heads": {"segmentation": MASKS}},
        model={
            "backbone": {"name": backbone},
            "projector": {"width": 16},
            # Adam would divide what rounding left of a gradient near zero by its own size
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
        cycle={"cycles": 1, "phases": list(phases)},
        run={"root": str(folder / "runs"), "wandb": "off", "pictures": 0, "baseline": False},
    )
    trace = folder / f"trace{ranks}{len(options)}"
    callback = {"class_path": "tracing.Gradients", "init_args": {"folder": str(trace)}}
    args = ["fit", "--config", recipe, f"--run.name=on{ranks}", f"--trainer.callbacks=[{callback}]"]
    ark_on(ranks, *args, "--trainer.limit_val_batches=0", *options)
    count = sum(phase["steps"] for phase in phases)
    steps = [[load(trace, f"step{n}", rank) for rank in range(ranks)] for n in range(count)]
    for others in (*steps, [load(trace, "end", rank) for rank in range(ranks)]):
        for other in others[1:]:
            assert_same(others[0], other, 0.0)
    return [of_ranks[0] for of_ranks in steps]


def load(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}_rank{rank}.pt", weights_only=True)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], near: float) -> None:
    """`near`: the length of the difference of two gradients, of that of the first."""
    assert one.keys() == other.keys()
    gradient, apart = (
        torch.cat([(value - by * other[name]).double().flatten() for name, value in one.items()])
        for by in (0, 1)
    )
    assert apart.norm() <= near * gradient.norm()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    return gradients(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_those_of_one_process(alone, ranks: int, tmp_path: Path) -> None:
    for step, (expected, found) in enumerate(zip(alone, gradients(tmp_path, ranks), strict=True)):
        assert expected, step
        assert_same(expected, found, ROUNDING)


def test_and_where_they_accumulate(tmp_path: Path) -> None:
    option = "--trainer.accumulate_grad_batches=2"
    expected = gradients(tmp_path / "one", 1, option)
    for one, other in zip(expected, gradients(tmp_path / "two", 2, option), strict=True):
        assert_same(one, other, ROUNDING)


def test_and_where_batchnorm_is_frozen(tmp_path: Path) -> None:
    frozen: Any = {"backbone": "test_efficientnet", "phases": FROZEN}
    expected = gradients(tmp_path / "one", 1, **frozen)
    for one, other in zip(expected, gradients(tmp_path / "two", 2, **frozen), strict=True):
        assert_same(one, other, ROUNDING)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_and_where_the_backbone_is_sharded(alone, tmp_path: Path, accumulated: int) -> None:
    options = [f"--trainer.accumulate_grad_batches={accumulated}"] * (accumulated > 1)
    expected = gradients(tmp_path / "one", 1, *options) if options else alone
    found = gradients(tmp_path / "two", 2, "--trainer.strategy=fsdp2", *options)
    for step, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one.keys() == other.keys(), step
        assert_same(one, other, ROUNDING)
