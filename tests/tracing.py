"""Callbacks for runs in processes of their own: one writes down what was trained on, one kills."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ark.distributed import ranks
from ark.types import Batch

Samples = list[tuple[str, int]]  # (key, augmentation seed)


class Trace(Callback):
    """Appends a line for every batch that went through a training step, and one for its loss.

    Args:
        folder: for a file a rank; one folder a session.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = [trainer.global_step, batch.task, batch.keys, batch.seeds, batch.positions]
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        with (self.folder / f"rank{trainer.global_rank}.losses").open("a") as file:
            file.write(f"{self._step} {float(outputs['loss'])!r}\n")


class Kill(Callback):
    """SIGKILL to this very process: no handler, no clean-up, no goodbye.

    Args:
        step: the optimiser step in which it strikes.
        when: "start" before the step, "backward" in its middle, "end" after it.
    """

    def __init__(self, step: int, when: str) -> None:
        self.step, self.when = step, when

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._strike(trainer.global_step, "start")

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self._strike(trainer.global_step, "backward")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._strike(trainer.global_step - 1, "end")

    def _strike(self, step: int, when: str) -> None:
        if (step, when) == (self.step, self.when):
            os.kill(os.getpid(), signal.SIGKILL)


def traced(folder: Path) -> dict[int, Samples]:
    """Step -> its samples over all ranks and accumulated batches, in the order of positions."""
    steps: dict[int, list[Any]] = defaultdict(list)
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            step, task, keys, seeds, positions = json.loads(line)
            for position, key, seed in zip(positions, keys, seeds, strict=True):
                steps[step].append((position, f"{task}/{key}", seed))
    return {
        step: [(key, seed) for _, key, seed in sorted(samples)] for step, samples in steps.items()
    }


def traced_losses(folder: Path) -> dict[int, float]:
    """Step -> the mean of its losses over ranks and accumulated batches: what is minimised."""
    steps: dict[int, list[float]] = defaultdict(list)
    for path in folder.glob("*.losses"):
        for line in path.read_text().splitlines():
            step, loss = line.split()
            steps[int(step)].append(float(loss))
    return {step: sum(found) / len(found) for step, found in steps.items()}


class Gradients(Callback):
    """Writes down every optimiser step's gradient, before clipping, and the networks at the end.

    Args:
        folder: for a file a step and rank.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        parameters = module.network.named_parameters()
        found = {name: ranks.whole(p.grad).clone() for name, p in parameters if p.grad is not None}
        self._write(trainer, f"step{trainer.global_step}", found)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        state = module.state_dict()
        self._write(trainer, "end", {name: ranks.whole(value) for name, value in state.items()})

    def _write(self, trainer: pl.Trainer, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, self.folder / f"{name}_rank{trainer.global_rank}.pt")
