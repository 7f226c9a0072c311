"""Damaged checkpoints, full and read-only disks in real runs of the `ark` command."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from commands import ark, write_recipe
from disks import disk_of
from safetensors.torch import load_file

from ark.checkpoints.sealing import verify

STEPS = 12
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    only = ["tiny_findings/findings", "tiny_organs/diagnosis"]
    return write_recipe(
        folder,
        data={"image_size": 32, "batch_size": 4, "workers": 0, "only": only},
        run={
            "root": str(folder / "runs"),
            "wandb": "off",
            "pictures": 0,
            "baseline": False,
            "bootstraps": 0,
            "checkpoint_every": 4,
            "validate": "phase",
            "validate_every": 1,
            "saving": {"milestone_every": 1, "best": {"val/tiny_organs/diagnosis/auroc": "max"}},
        },
    )


def fit(recipe: Path, name: str, *options: object) -> Path:
    ark("fit", "--config", recipe, f"--run.name={name}", *options)
    return recipe.parent / "runs" / name


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run that was never interrupted."""
    return fit(recipe, "whole")


def assert_same(run: Path, whole: Path) -> None:
    one, other = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, whole)
    )
    assert one["global_step"] == other["global_step"] == STEPS
    assert one["ark_ledger"] == other["ark_ledger"]
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    torch.testing.assert_close(*moments, rtol=0, atol=0)
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    for who in ("student", "teacher"):
        mine, theirs = (load_file(r / "model" / f"{who}.safetensors") for r in (run, whole))
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_teacher_in_every_checkpoint_has_had_its_update(whole: Path) -> None:
    states = [
        torch.load(whole / "checkpoints" / f"step-{n}.ckpt", weights_only=True)["state_dict"]
        for n in range(1, STEPS + 1)
    ]
    moved = 0
    for before, after in itertools.pairwise(states):
        for name, value in after.items():
            if name.startswith("teacher.network.") and value.is_floating_point():
                student = after[name.removeprefix("teacher.")]
                expected = torch.lerp(before[name], student, 1 - 0.99)
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
                moved += not torch.equal(value, before[name])
    assert moved > STEPS


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    recipe: Path, whole: Path, caplog
) -> None:
    bare = "--run.saving={milestone_every: null, best: {}}"
    run = fit(recipe, "damaged", bare, "--trainer.max_steps=9")
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    assert [verify(path).step for path in (last, previous)] == [8, 4]
    data = bytearray(last.read_bytes())
    data[len(data) // 3] ^= 16
    last.write_bytes(data)
    torch.load(last, weights_only=True)  # would have been taken for good
    with pytest.raises(SystemExit), caplog.at_level(logging.WARNING, "ark"):
        fit(recipe, "damaged", bare, f"--ckpt_path={last}")
    with caplog.at_level(logging.WARNING, "ark"):
        fit(recipe, "damaged", bare, "--ckpt_path=last")
    assert "last.ckpt is damaged" in caplog.text
    assert "going on from previous.ckpt, step 4" in caplog.text
    assert_same(run, whole)


@pytest.mark.parametrize("name", ["best-val-tiny_organs-diagnosis-auroc-{}.ckpt", "step-{}.ckpt"])
def test_a_run_goes_on_from_any_checkpoint(
    recipe: Path, whole: Path, name: str, request: pytest.FixtureRequest
) -> None:
    folder = recipe.parent / "runs" / f"from-{name.split('-')[0]}"
    fit(recipe, folder.name, "--trainer.max_steps=7")
    found = sorted((folder / "checkpoints").glob(name.format("*")))
    for path in (folder / "checkpoints").iterdir():
        if path not in found:
            path.unlink()
    fit(recipe, folder.name, "--ckpt_path=last")
    assert_same(folder, whole)


def test_what_stops_the_last_scoring_costs_no_step(
    recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the plan's end is no multiple of the steps between checkpoints."""
    options = ["--run.checkpoint_every=1000", "--run.saving.milestone_every=null"]

    def killed(trainer: pl.Trainer, *_: object) -> None:
        trainer.strategy.teardown()  # as of whatever ends a trainer
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("ark.fitting.calibrate", killed)
        with pytest.raises(SystemExit):
            fit(recipe, "scoring", *options)
    seal = verify(recipe.parent / "runs" / "scoring" / "checkpoints" / "last.ckpt")
    assert seal is not None
    assert seal.step == STEPS
    assert_same(fit(recipe, "scoring", "--ckpt_path=auto", *options), whole)


@pytest.mark.parametrize(("every", "said"), [(1, "newest checkpoint"), (4, "no checkpoint was")])
def test_a_run_that_was_cut_short_says_where_it_goes_on(
    recipe: Path, caplog: pytest.LogCaptureFixture, every: int, said: str
) -> None:
    options = ["--run.saving.milestone_every=null", "--run.validate=cycle"]
    fit(recipe, f"cut{every}", "--trainer.max_steps=1", f"--run.checkpoint_every={every}", *options)
    assert "ended the run after step 1 of 12" in caplog.text
    assert said in caplog.text


def test_a_folder_that_cannot_be_written_is_said_before_anything_else(
    recipe: Path, tmp_path: Path, capsys, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SystemExit) as exit:
        fit(recipe, "readonly", f"--run.root={small_disk}")
    assert exit.value.code == 2
    assert "Read-only file system; mend its rights" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk that holds one checkpoint of this run, not two."""
    with disk_of("3m", tmp_path / "small") as folder:
        yield folder


def test_a_full_disk_is_said_the_old_checkpoint_stays_and_the_run_goes_on_later(
    recipe: Path, whole: Path, small_disk: Path, capsys
) -> None:
    options = [f"--run.root={small_disk}", "--run.saving={milestone_every: null, best: {}}"]
    with pytest.raises(SystemExit) as exit:
        fit(recipe, "full", *options)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "No space left on device: last.ckpt needs" in message
    assert str(small_disk / "full" / "checkpoints") in message
    checkpoints = small_disk / "full" / "checkpoints"
    assert [p for p in os.listdir(checkpoints) if p.endswith(".tmp")] == []
    assert verify(checkpoints / "last.ckpt").step >= 4
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    fit(recipe, "full", *options, "--ckpt_path=last")
    assert_same(small_disk / "full", whole)
