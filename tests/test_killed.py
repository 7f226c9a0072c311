"""Killed with SIGKILL again and again, a run sees what it would have seen, and learns the same."""

from __future__ import annotations

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ark_in_a_child, write_recipe
from safetensors.torch import load_file
from tracing import Samples, traced

KILLS = 20
WHEN = ("start", "backward", "end")
# imports once and forks for each session: a session would spend 6 s on importing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ark.cli", "heads.classification", "heads.segmentation", "commands"]
)


def session(*args: object) -> int:
    """`ark ARGS` in a process of its own; its exit code."""
    process = CONTEXT.Process(target=ark_in_a_child, args=args)
    process.start()
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"ark {' '.join(map(str, args))} hangs")
    return process.exitcode


def fit(recipe: Path, name: str, trace: Path, *more: object, kill: tuple[int, str] | None = None):
    callbacks: list[dict[str, Any]] = [
        {"class_path": "tracing.Trace", "init_args": {"folder": str(trace)}}
    ]
    if kill is not None:
        init_args = {"step": kill[0], "when": kill[1]}
        callbacks.append({"class_path": "tracing.Kill", "init_args": init_args})
    args = ("--config", recipe, f"--run.name={name}", f"--trainer.callbacks={callbacks}")
    return session("fit", *args, *more)


def recipe_of_40_steps(folder: Path, workers: int) -> Path:
    """Classification and masks, phases of unlike length, dropout, passes that wrap."""
    cycle = {"cycles": 4, "each": [{"lock": ["backbone"], "steps": 1}, {"steps": 2}]}
    return write_recipe(
        folder,
        cycle=cycle,
        data={
            "image_size": 32,
            "batch_size": 4,
            "workers": workers,
            "only": ["tiny_findings/findings", "tiny_organs/organs", "tiny_organs/diagnosis"],
        },
        model={"backbone": {"name": "test_efficientnet", "args": {"drop_path_rate": 0.2}}},
        run={
            "root": str(folder / "runs"),
            "wandb": "off",
            "pictures": 0,
            "baseline": False,
            "checkpoint_every": 2,
            "validate_every": 2,
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_20_random_steps(tmp_path: Path, workers: int) -> None:
    recipe = recipe_of_40_steps(tmp_path, workers)
    assert fit(recipe, "whole", tmp_path / "whole") == 0
    expected = traced(tmp_path / "whole")
    assert sorted(expected) == list(range(36))
    seen: dict[int, Samples] = {}
    draw = random.Random(workers)
    steps = sorted(draw.sample(range(2, 36), KILLS))
    for number, step in enumerate([*steps, None]):
        kill = None if step is None else (step, draw.choice(WHEN))
        trace = tmp_path / f"session{number}"
        resume = ["--ckpt_path=last"] if number else []
        code = fit(recipe, "killed", trace, *resume, kill=kill)
        assert code == (0 if kill is None else -signal.SIGKILL), f"session {number}, kill at {kill}"
        found = traced(trace)
        for at, samples in found.items():
            assert samples == expected[at], f"step {at} of session {number}"
        assert sorted(found) == list(range(min(found), max(found) + 1))
        seen |= found
    assert seen == expected
    runs = tmp_path / "runs"
    for who in ("student", "teacher"):
        whole = load_file(runs / "whole" / "model" / f"{who}.safetensors")
        killed = load_file(runs / "killed" / "model" / f"{who}.safetensors")
        for name, value in whole.items():
            assert torch.equal(value, killed[name]), f"{who}: {name}"
