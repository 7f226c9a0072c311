"""What happens around a training step: locks, the teacher, seeds and the progress bar."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from ark.cycle import Position
from ark.distributed import ranks
from ark.distributed.ddp import PhaseDDPStrategy
from ark.locks import idle_modules, locked_modules
from ark.module import ArkModule
from ark.seeds import seed_of
from ark.starting import start_heads


class CycleRunner(Callback):
    """Carries out the plan around each step. Holds no state that a resumed run would miss.

    A callback and not hooks of the module, because Lightning saves checkpoints before it calls
    the module's `on_train_batch_end`: the teacher in the file would be one update behind.
    """

    def __init__(self) -> None:
        self._applied: tuple[list[str], ...] | None = None  # tasks and locks that are in force
        self._started = False  # whether the heads took their first weights from data
        self._finished = 0  # optimiser steps whose teacher update was made

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start_heads(trainer, module)  # the score before training is that of the start

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start_heads(trainer, module)

    def _start_heads(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Once, and not in a run that goes on: its checkpoint brings what was started."""
        assert isinstance(module, ArkModule)
        if not self._started and trainer.ckpt_path is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            start_heads(module, lambda task, count: data.samples(task, count))
        self._started = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._applied = None
        self._finished = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, ArkModule)
        at = module.cycle.at(trainer.global_step)
        wanted = at.phase.members, at.phase.lock, at.phase.train
        if self._applied != wanted:
            still = locked_modules(module.network, at.phase)
            module.locks.apply([*still, *idle_modules(module.network, at.phase)])
            if isinstance(trainer.strategy, PhaseDDPStrategy):
                trainer.strategy.enter_phase()
            self._applied = wanted
        # Dropout and drop-path draw from the step, so that a resumed run draws the same.
        micro = batch_idx % trainer.accumulate_grad_batches
        torch.manual_seed(seed_of(module.seed, at.step, micro, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        assert isinstance(module, ArkModule)
        if trainer.global_step > self._finished:  # not while gradients still accumulate
            finished = module.cycle.at(trainer.global_step - 1)
            ranks.average_running_statistics(module.network)
            module.update_teacher(finished)
            if finished.ends("cycle"):
                module.balance.end_cycle()
            self._finished = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._applied = None  # evaluation changed the modes of locked and free modules alike


class CycleProgressBar(TQDMProgressBar):
    """Names the cycle, the task and what is locked."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        super().on_train_batch_start(trainer, module, *args)
        if not self.is_enabled:
            return  # only the first rank draws a bar
        at: Position = module.cycle.at(trainer.global_step)
        if at.phase_step == 0 or not self.train_progress_bar.desc.startswith("cycle"):
            self.train_progress_bar.set_description(describe(at, module.cycle.cycles))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        # reading the loss waits for the device: only when the bar is drawn anyway
        if (batch_idx + 1) % self.refresh_rate == 0 and self.is_enabled:
            self.train_progress_bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}")

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        return {}


def describe(at: Position, cycles: int) -> str:
    """`cycle 2/8  wingspan/organs  lock backbone`"""
    return f"cycle {at.cycle + 1}/{cycles}  {at.phase.name}  {at.phase.state}"
