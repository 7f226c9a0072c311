"""When training fails: where it was, with which samples, and what to do."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ark import ranks
from ark.errors import ConfigError
from ark.types import Batch

log = logging.getLogger("ark")


class NotFiniteError(RuntimeError):
    """A training loss that is no number. The weights are spoiled by it; checkpoints are not."""


class Faults(Callback):
    """Stops a run at a loss that is NaN or infinite, before it reaches a checkpoint, and says of
    every failure in training which rank, step, phase, tasks and samples it was.

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
        if isinstance(exception, KeyboardInterrupt | SystemExit | ConfigError):
            return
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step >= module.cycle.total_steps:
            log.error("\nrank %d of %d failed", trainer.global_rank, trainer.world_size)
        else:
            log.error("\n%s", self._where(trainer, module))  # the bar has no end of its line
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            log.error("%s", _out_of_memory(module.device))
        for pattern, advice in _ADVICE.items():
            if re.search(pattern, str(exception), re.IGNORECASE):
                log.error("%s", advice)

    def _where(self, trainer: pl.Trainer, module: Any) -> str:
        doing = "waiting for the batch of" if trainer.training else "validating before"
        step, samples = trainer.global_step, ""
        if trainer.training and self._batch is not None:
            doing, step = "in", self._step
            samples = f"; its samples: { {part.task: part.keys for part in self._batch.parts} }"
        at = module.cycle.at(step)
        return (
            f"rank {trainer.global_rank} of {trainer.world_size} failed {doing} step {at.step}, "
            f"cycle {at.cycle + 1}, {at.phase.name} ({at.phase.state}){samples}"
        )


# what torch's errors look like, and what they mean
_ADVICE = {
    r"timed out|timeout": (
        "Another rank did not answer within run.timeout: the one that says no such thing hangs "
        "(its disk, its data, a driver) or is slower than that. Go on with --ckpt_path=last."
    ),
    r"closed by peer|reset by peer|connection (was )?(refused|closed)": (
        "Another rank has died; what it said stands above, or nothing where it was killed (out of "
        "memory, a lost node). Go on with --ckpt_path=last."
    ),
    r"DataLoader worker .* (killed|exited)": (
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
