"""When training fails: where it was, with which samples, and what to do."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ark.errors import ConfigError
from ark.types import Batch

log = logging.getLogger("ark")


class NotFiniteError(RuntimeError):
    """A training loss that is no number. The weights are spoiled by it; checkpoints are not."""


class Faults(Callback):
    """Stops a run at a loss that is NaN or infinite, before it reaches a checkpoint, and says of
    every failure in training which rank, step, phase, tasks and samples it was.

    The batch of a loss that is not finite is kept in `folder` for replay: on a GPU a step later
    than it ran, so that no step waits for the device.

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
        self._waiting = self._step, batch, finite, event
        if event is None:
            self._resolve(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: Any) -> None:
        self._resolve(trainer, module)

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
        file = self._keep(trainer, step, batch)
        raise NotFiniteError(
            f"the loss is not finite; its batch is in {file}. Go on from a checkpoint before it "
            "(--ckpt_path=last) with a lower model.optimizer lr or with model.clip, or look at the "
            "samples"
        )

    def _keep(self, trainer: pl.Trainer, step: int, batch: Batch) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step{step}_rank{trainer.global_rank}.pt"
        parts = [replace(part, others=[]).to("cpu") for part in batch.parts]
        kept = ("keys", "positions", "seeds", "images", "teacher_images")
        plain = {
            part.task: {name: getattr(part, name) for name in kept} | {"target": vars(part.target)}
            for part in parts
        }
        torch.save(plain, file)
        keys = {part.task: part.keys for part in parts}
        file.with_suffix(".json").write_text(json.dumps(keys, indent=1))
        return file

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        if not trainer.training or self._batch is None:
            return
        if isinstance(exception, KeyboardInterrupt | SystemExit | ConfigError):
            return
        log.error("%s", self._where(trainer, module))
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            log.error("%s", _out_of_memory(module.device))

    def _where(self, trainer: pl.Trainer, module: Any) -> str:
        assert self._batch is not None
        at = module.cycle.at(self._step)
        keys = {part.task: part.keys for part in self._batch.parts}
        return (
            f"rank {trainer.global_rank} of {trainer.world_size} failed in step {at.step}, cycle "
            f"{at.cycle + 1}, {at.phase.name} ({at.phase.state}); its samples: {keys}"
        )


def _out_of_memory(device: torch.device) -> str:
    used, peak = (
        f(device) / 2**30 for f in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated)
    )
    return (
        f"GPU memory: {used:.1f} GiB in use, {peak:.1f} at most. Lower data.batch_size, or share a "
        "step among more micro-batches (--trainer.accumulate_grad_batches) or GPUs, or train with "
        "--trainer.precision=bf16-mixed"
    )
