"""A failure in training says where it was; a loss that is no number ends the run in time."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.trainer.states import RunningStage
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from ark import faults
from ark.callbacks import CycleRunner
from ark.cycle import Cycle, Phase
from ark.distributed import ranks
from ark.errors import ConfigError
from ark.faults import Faults, NotFiniteError, full_disk_explained, load_batches
from ark.module import ArkModule, BackboneConfig
from toys import SIZE, make_batch, make_task

KINDS = ("multilabel", "detection")


class Spoil(Callback):
    """Makes weights NaN, or raises, in step 2 or while its batch is waited for."""

    def __init__(self, error: Exception | None = None, waiting: bool = False) -> None:
        self.error, self.waiting = error, waiting

    def on_train_batch_start(self, trainer: pl.Trainer, module: ArkModule, *_) -> None:
        if trainer.global_step == 2:
            if self.error:
                self._raise(self.waiting)
            with torch.no_grad():
                next(module.network.heads.parameters()).fill_(torch.nan)

    def on_before_backward(self, trainer: pl.Trainer, *_) -> None:
        self._raise(self.error is not None and trainer.global_step == 2)

    def _raise(self, now: bool) -> None:
        if now:
            raise self.error  # type: ignore[misc]


def fit(folder: Path, spoil: Spoil) -> None:
    tasks = [make_task(kind) for kind in KINDS]
    phases = [
        Phase(tasks[0].key, steps=2),
        Phase(tasks=[task.key for task in tasks], steps=2, lock=["backbone"]),
    ]
    cycle = Cycle(phases, [2, 2], cycles=1)
    module = ArkModule(tasks, cycle, SIZE, BackboneConfig("test_efficientnet"))
    batches = []
    for step in range(4):
        parts = [make_batch(key.split("/")[1], 2) for key in cycle.at(step).phase.members]
        for part in parts:
            part.teacher_images, part.keys = part.images, [f"s{step}a", f"s{step}b"]
        batches.append(replace(parts[0], others=parts[1:]))
    saving = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[spoil, CycleRunner(), Faults(folder / "faults"), saving],
    ).fit(module, DataLoader(batches, batch_size=None))  # fmt: skip


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_batch(tmp_path, caplog) -> None:
    with pytest.raises(NotFiniteError, match=r"step2_rank0.pt.*--ckpt_path=last"):
        fit(tmp_path, Spoil())
    assert (
        "failed in step 2, cycle 1, toy/multilabel + toy/detection (lock backbone)" in caplog.text
    )
    assert "'toy/multilabel': ['s2a', 's2b']" in caplog.text
    kept = torch.load(tmp_path / "faults" / "step2_rank0.pt", weights_only=True)
    assert set(kept) == {f"toy/{kind}" for kind in KINDS}
    expected = make_batch("detection", 2)
    torch.testing.assert_close(kept["toy/detection"]["target"]["boxes"], expected.target.boxes)
    assert torch.equal(kept["toy/detection"]["images"], expected.images)
    replayed = load_batches(tmp_path / "faults" / "step2_rank0.pt")
    assert [batch.task for batch in replayed] == [f"toy/{kind}" for kind in KINDS]
    torch.testing.assert_close(replayed[1].target.boxes, expected.target.boxes)
    assert replayed[1].keys == ["s2a", "s2b"]
    keys = json.loads((tmp_path / "faults" / "step2_rank0.json").read_text())
    assert keys["toy/detection"] == ["s2a", "s2b"]
    saved = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert [path.stem for path in saved] == ["step=1", "step=2"]  # none with the NaN
    for path in saved:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_any_other_failure_says_where_it_was(tmp_path, caplog) -> None:
    with pytest.raises(RuntimeError, match="strange"):
        fit(tmp_path, Spoil(RuntimeError("something strange")))
    assert "rank 0 of 1 failed in step 2, cycle 1, toy/multilabel + toy/detection" in caplog.text
    assert "its samples: {'toy/multilabel': ['s2a', 's2b']" in caplog.text
    assert not (tmp_path / "faults").exists()


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "lower data.workers"),
        ("[gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:49370", "rank has died"),
        (
            "Timed out waiting 10000ms for recv operation",
            "did not answer within run.timeout",
        ),
        ("DataLoader timed out after 10.0 seconds", "gave no batch for run.timeout seconds"),
        ("unable to open shared memory object </torch_1>", "enlarge /dev/shm"),
    ],
)
def test_what_torch_says_is_explained(
    tmp_path, caplog, monkeypatch, message: str, advice: str
) -> None:
    monkeypatch.setattr(
        "ark.faults.ranks", SimpleNamespace(several=lambda: True, local=ranks.local)
    )
    monkeypatch.setattr("ark.faults._say_failed", lambda: None)
    monkeypatch.setattr("ark.faults._silent_ranks", list)
    with pytest.raises(RuntimeError):
        fit(tmp_path, Spoil(RuntimeError(message), waiting=True))
    assert "rank 0 of 1 failed waiting for the batch of step 2" in caplog.text
    assert advice in caplog.text


@pytest.mark.parametrize("message", ["<urlopen error timed out>", "Connection reset by peer"])
def test_one_process_is_not_told_of_other_ranks(tmp_path, caplog, message: str) -> None:
    with pytest.raises(RuntimeError):
        fit(tmp_path, Spoil(RuntimeError(message), waiting=True))
    assert "rank 0 of 1 failed" in caplog.text
    assert "nother rank" not in caplog.text


def test_out_of_memory_names_the_ways_out(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fit(tmp_path, Spoil(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    assert "1.0 GiB in use, 3.0 at most. Lower data.batch_size" in caplog.text


def test_a_failure_in_an_evaluation_names_its_samples(caplog) -> None:
    callback = Faults(Path("unused"))
    batch = make_batch("multilabel", 2)
    batch.keys = ["left", "right"]
    trainer = Mock(global_rank=1, world_size=2, global_step=3, training=False)
    trainer.state.stage = RunningStage.VALIDATING
    module = Mock(cycle=Cycle([Phase("toy/multilabel", steps=9)], [9], cycles=1))
    callback.on_validation_batch_start(trainer, module, batch, 0)
    callback.on_exception(trainer, module, RuntimeError("strange"))
    where = "rank 1 of 2 failed in validate after step 2, cycle 1, toy/multilabel (release)"
    assert where + "; its samples: {'toy/multilabel': ['left', 'right']}" in caplog.text
    callback.on_validation_batch_end(trainer, module)
    caplog.clear()
    callback.on_exception(trainer, module, RuntimeError("strange"))
    assert "left" not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "metrics.csv"),
        SafetensorError("Io error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_mistake_that_can_be_mended(tmp_path, error: Exception) -> None:
    message = r"No space left.*bytes are free in.*ckpt_path=last"
    with pytest.raises(ConfigError, match=message), full_disk_explained(tmp_path):
        raise error


def test_other_errors_of_files_are_left_alone(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), full_disk_explained(tmp_path):
        (tmp_path / "none").read_text()


def test_a_batch_that_cannot_be_kept_hides_nothing(tmp_path) -> None:
    (tmp_path / "faults").touch()  # no folder
    with pytest.raises(NotFiniteError, match="its batch could not be kept"):
        fit(tmp_path, Spoil())


def test_the_first_rank_to_ask_learns_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(faults, "_get_default_store", lambda: store)
    monkeypatch.setattr(faults, "_OTHERS_FAIL", 0.3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    for rank in (0, 2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        faults._say_failed()
    assert faults._silent_ranks() == [1, 3]
    assert faults._silent_ranks() == []


def test_a_store_that_is_gone_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Mock(side_effect=dist.DistNetworkError("Broken pipe"))
    monkeypatch.setattr(faults, "_get_default_store", lambda: Mock(set=gone, add=gone))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    faults._say_failed()
    assert faults._silent_ranks() == []
