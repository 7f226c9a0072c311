"""What the steps of training found out, on its way to the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from lightning_fabric.loggers.logger import Logger
from torch import Tensor

from ark.distributed import ranks
from ark.tracking.sinks import log_numbers


class StepNumbers:
    """Numbers of the micro-batches of one optimiser step, by task.

    Not self.log: Lightning repeats the last value of every task at each step of any task.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Mapping[str, Tensor]]] = {}

    def add(self, task: str, numbers: Mapping[str, Tensor]) -> None:
        """
        Args:
            task: its key.
            numbers: detached scalars of one micro-batch, by name.
        """
        self._found.setdefault(task, []).append(numbers)

    def log(self, loggers: Sequence[Logger], step: int) -> None:
        """`train/<dataset>/<task>/<name>`, of the tasks that were added since the last call: the
        mean over micro-batches and ranks. One that has no such number counts as 0."""
        means = {
            f"train/{task}/{name}": torch.stack([e[name] for e in found if name in e]).sum()
            / len(found)
            for task, found in self._found.items()
            for name in dict.fromkeys(chain.from_iterable(found))
        }
        self._found = {}
        if means:  # one look at the device, not one for each number
            values = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
            log_numbers(loggers, ranks.mean_numbers(values), step)
