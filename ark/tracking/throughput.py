"""How fast a run is, what it waits for, and what it takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ark.cycle import Position
from ark.module import ArkModule
from ark.tracking.sinks import log_numbers
from ark.types import Batch

_GB = 1e9


class Throughput(Callback):
    """Logs `speed/`, `memory/`, `teacher/` and `plan/` every `log_every_n_steps` optimiser steps.

    Must be the last callback but for checkpoints: what happens between the end of a batch and the
    start of the next one is then the loader and the copy to the device. Gaps with a validation or a
    checkpoint in them are no wait for data, and are left out of the mean.

    No step waits for the device (Lightning's ThroughputMonitor synchronises in each): times are
    those of the process, which stands at most as far ahead of the device as between two steps that
    log. A rank counts the samples of all: they have equally many.
    """

    def __init__(self) -> None:
        self._ended: float | None = None  # when the last batch ended; None: the gap does not count
        self._paused_at: float | None = None  # when a validation began
        self._finished = 0  # optimiser steps
        self._open(time.perf_counter())

    def _open(self, now: float) -> None:
        """A window of time, from one logged step to the next."""
        self._began, self._steps, self._samples = now, 0, 0
        self._paused, self._waited, self._gaps = 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._ended, self._finished = None, trainer.global_step
        self._open(time.perf_counter())

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._ended is not None:
            self._waited += time.perf_counter() - self._ended
            self._gaps += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(module, ArkModule)
        self._samples += sum(len(part.keys) for part in batch.parts) * trainer.world_size
        if trainer.global_step > self._finished:  # not while gradients still accumulate
            self._finished = trainer.global_step
            self._steps += 1
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step % every == 0:
                at, now = module.cycle.at(trainer.global_step - 1), time.perf_counter()
                log_numbers(trainer.loggers, {**self._speed(now), **_state(module, at)}, at.step)
                self._open(now)
        self._ended = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._paused_at, self._ended = time.perf_counter(), None

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._paused_at is not None:
            self._paused += time.perf_counter() - self._paused_at

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._ended = None

    def _speed(self, now: float) -> dict[str, float]:
        seconds = max(now - self._began - self._paused, 1e-9)
        found = {
            "speed/steps_per_s": self._steps / seconds,
            "speed/samples_per_s": self._samples / seconds,
        }
        if self._gaps:
            found["speed/data_wait_s"] = self._waited / self._gaps  # a batch
            found["speed/data_wait"] = min(self._waited / seconds, 1.0)  # share of the time
        return found


def _state(module: ArkModule, at: Position) -> dict[str, float]:
    return {
        "teacher/momentum": module.teaching.momentum_at(at),
        "teacher/consistency_weight": module.teaching.weight_at(at),
        "plan/cycle": at.cycle + 1,
        "plan/phase": at.phases + 1,
        **memory(),
    }


def memory() -> dict[str, float]:
    """In GB; of the GPU what torch's allocator says, which asks no device."""
    found = {"memory/rss_gb": resident() / _GB}
    if torch.cuda.is_available():
        found["memory/cuda_peak_gb"] = torch.cuda.max_memory_allocated() / _GB
        found["memory/cuda_reserved_gb"] = torch.cuda.memory_reserved() / _GB
    return found


def resident() -> int:
    """Bytes of this process that lie in memory; where /proc is not, the most that ever did."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
