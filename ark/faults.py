"""When a run fails: where it was, with which samples, who did not answer, and what to do."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from ark import types
from ark.distributed import ranks
from ark.errors import ConfigError
from ark.types import Batch

log = logging.getLogger("ark")
_OTHERS_FAIL = 5.0  # seconds after the first rank has failed in which the others do


class NotFiniteError(RuntimeError):
    """A training loss that is no number. The weights are spoiled by it; checkpoints are not."""


class Faults(Callback):
    """Stops a run at a loss that is NaN or infinite, before it reaches a checkpoint, and says of
    every failure which rank, step, phase, tasks and samples it was, and which ranks said nothing.

    The batch of a loss that is not finite is kept in `folder` for replay: on a GPU a step later
    than it ran, so that no step waits for the device. Of several ranks those with a finite loss
    have its gradient too: none writes a checkpoint of weights that are no numbers.

    Args:
        folder: for the batches; made when there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batch: Batch | None = None
        self._waiting: tuple[int, Batch, Tensor, Any] | None = None  # step, batch, finite?, event

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._batch, self._step = batch, trainer.global_step

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Batch, *_: Any
    ) -> None:
        self._batch = batch

    def on_test_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        self._batch = batch

    def on_validation_batch_end(self, *_: Any) -> None:
        self._batch = None

    def on_test_batch_end(self, *_: Any) -> None:
        self._batch = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._resolve(trainer, module)  # of the step before
        finite = torch.isfinite(outputs["loss"].detach())
        event = None
        if finite.is_cuda:
            finite = finite.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting, self._batch = (self._step, batch, finite, event), None
        if event is None:
            self._resolve(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: Any) -> None:
        self._resolve(trainer, module)
        norms = torch._foreach_norm([ranks.local(p.detach()) for p in module.parameters()])
        if not bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
            raise NotFiniteError(
                f"the weights are not finite after step {trainer.global_step}: no checkpoint is "
                "written of them. Where there are other ranks, one of them says which batch it was"
            )

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._resolve(trainer, module)

    def _resolve(self, trainer: pl.Trainer, module: Any) -> None:
        if self._waiting is None:
            return
        step, batch, finite, event = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        if bool(finite):
            return
        self._batch, self._step = batch, step
        try:
            kept = f"is in {self._keep(trainer, step, batch)}"
        except (OSError, RuntimeError) as error:  # torch.save's own is no OSError
            kept = f"could not be kept ({error})"
        raise NotFiniteError(
            f"the loss is not finite; its batch {kept}. Go on from a checkpoint before it "
            "(--ckpt_path=last) with a lower model.optimizer lr or with model.clip, or look at the "
            "samples"
        )

    def _keep(self, trainer: pl.Trainer, step: int, batch: Batch) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step{step}_rank{trainer.global_rank}.pt"
        parts = [replace(part, others=[]).to("cpu") for part in batch.parts]
        kept = ("keys", "positions", "seeds", "images", "teacher_images")
        plain = {
            part.task: {name: getattr(part, name) for name in kept}
            | {"target": vars(part.target), "kind": type(part.target).__name__}
            for part in parts
        }
        torch.save(plain, file)
        keys = {part.task: part.keys for part in parts}
        file.with_suffix(".json").write_text(json.dumps(keys, indent=1))
        return file

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        if ranks.several():
            _say_failed()
        if isinstance(exception, KeyboardInterrupt | SystemExit | ConfigError):
            return
        # the bar has no end of its line
        log.error("\n%s", self._where(trainer, module))
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            log.error("%s", _out_of_memory(module.device))
        found = (p for p in _ADVICE if re.search(p, str(exception), re.IGNORECASE))
        pattern, of_ranks = next(found, None), (_SLOW, _GONE)
        if pattern is None or (pattern in of_ranks and not ranks.several()):
            return  # of one process it is a server that was slow or has gone
        log.error("%s", _ADVICE[pattern])
        if pattern in of_ranks and (silent := _silent_ranks()):
            log.error("Nothing was heard of rank %s.", ", ".join(map(str, silent)))

    def _where(self, trainer: pl.Trainer, module: Any) -> str:
        failed = f"rank {trainer.global_rank} of {trainer.world_size} failed"
        step, samples = trainer.global_step, ""
        if self._batch is not None:
            samples = f"; its samples: { {part.task: part.keys for part in self._batch.parts} }"
        if trainer.training and self._batch is not None:
            doing, step = "in", self._step
        elif trainer.training and step < module.cycle.total_steps:
            doing = "waiting for the batch of"
        else:
            stage = f"in {trainer.state.stage.value} " if trainer.state.stage else ""
            doing, step = f"{stage}after", max(step - 1, 0)
        at = module.cycle.at(step)
        place = f"step {at.step}, cycle {at.cycle + 1}, {at.phase.name} ({at.phase.state})"
        return f"{failed} {doing} {place}{samples}"


def load_batches(file: str | Path) -> list[Batch]:
    """What `Faults` kept of a loss that is not finite: a batch for each task of the step."""
    found = []
    for task, kept in torch.load(file, weights_only=True).items():
        target = getattr(types, kept.pop("kind"))(**kept.pop("target"))
        found.append(Batch(task, target=target, **kept))
    return found


def _say_failed() -> None:
    """To the other ranks, through the store in which they once met: the connections between them
    break with the first that fails."""
    with suppress(RuntimeError):  # the store is gone with the rank that held it
        _get_default_store().set(f"ark/failed/{dist.get_rank()}", "")


def _silent_ranks() -> list[int]:
    """Ranks that do not say within seconds that they failed. The first rank to ask learns it; for
    others it is empty."""
    silent: list[int] = []
    with suppress(RuntimeError):
        store = _get_default_store()
        if store.add("ark/asked", 1) > 1:
            # one of them may hold the store, and must not end before the first has its answer
            store.wait(["ark/answered"], timedelta(seconds=2 * _OTHERS_FAIL))
            return []
        silent, end = list(range(dist.get_world_size())), time.monotonic() + _OTHERS_FAIL
        while silent and time.monotonic() < end:
            time.sleep(0.1)
            silent = [rank for rank in silent if not store.check([f"ark/failed/{rank}"])]
        store.set("ark/answered", "")
    return silent


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Around all that a run writes beside checkpoints: logs, ledger, pictures, model, report.

    Args:
        folder: of the run.

    Raises:
        ConfigError: the disk is full, or cannot be written any more.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in _UNWRITABLE
        if not full and not (isinstance(error, SafetensorError) and "os error 28" in str(error)):
            raise
        name = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        what = error.strerror if isinstance(error, OSError) else "No space left on device"
        raise ConfigError(
            f"run.root: a file could not be written{name}: {what}; "
            f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}. Make room, and go on "
            "with --ckpt_path=last"
        ) from error


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

# what torch's errors look like, and what they mean
_SLOW = r"timed out|timeout"
_GONE = r"closed by peer|reset by peer|connection (was )?(refused|closed)"
_ADVICE = {  # the first that fits
    r"DataLoader timed out": (
        "A process that decodes gave no batch for run.timeout seconds: its disk or network hangs, "
        "or is slower than that. Go on with --ckpt_path=last."
    ),
    _SLOW: (
        "Another rank did not answer within run.timeout: the one that says no such thing hangs "
        "(its disk, its data, a driver) or is slower than that. Go on with --ckpt_path=last."
    ),
    _GONE: (
        "Another rank has died; what it said stands above, or nothing where it was killed (out of "
        "memory, a lost node). Go on with --ckpt_path=last."
    ),
    r"DataLoader worker .* (killed|exited)|shared memory": (
        "A process that decodes was killed, mostly for want of memory: lower data.workers or "
        "data.batch_size, ask for more memory, or enlarge /dev/shm. Go on with --ckpt_path=last."
    ),
}


def _out_of_memory(device: torch.device) -> str:
    used, peak = (
        f(device) / 2**30 for f in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated)
    )
    return (
        f"GPU memory: {used:.1f} GiB in use, {peak:.1f} at most. Lower data.batch_size, or share a "
        "step among more micro-batches (--trainer.accumulate_grad_batches) or GPUs, or train with "
        "--trainer.precision=bf16-mixed"
    )
