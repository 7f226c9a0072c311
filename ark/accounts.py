"""What became of the samples that a plan asked for, in whole numbers that add up over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ark.types import SKIP_REASONS, Batch

_SUM, _SQUARES, _SEEN = range(3)  # columns; the reasons of skipping follow
_MODULUS = 2**64  # sums wrap around, here as in the integers of every device


class Accounts:
    """Of every task: samples seen, samples skipped by reason, and two sums of positions.

    The sum of the positions 0..n-1 and the sum of their squares are known in advance; a lost,
    repeated or foreign position changes them, however many samples there are.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.numbers = np.zeros((len(self.tasks), 3 + len(SKIP_REASONS)), np.uint64)

    def enter(self, batch: Batch) -> None:
        """Adds what a batch says of itself."""
        positions = np.array(batch.positions, np.uint64)
        reasons = [skipped.reason for skipped in batch.skipped]
        entry = [
            positions.sum(dtype=np.uint64),
            (positions * positions).sum(dtype=np.uint64),
            len(positions) - len(reasons),
            *(reasons.count(reason) for reason in SKIP_REASONS),
        ]
        self.numbers[self.tasks.index(batch.task)] += np.array(entry, np.uint64)

    def add(self, tensor: Tensor) -> None:
        """Adds accounts that came as `as_tensor`."""
        self.numbers += tensor.cpu().numpy().view(np.uint64)

    def as_tensor(self) -> Tensor:
        """(tasks, columns) int64, to be summed over ranks."""
        return torch.from_numpy(self.numbers.view(np.int64).copy())

    def seen(self, task: str) -> int:
        return int(self._row(task)[_SEEN])

    def skipped(self, task: str) -> dict[str, int]:
        """Reason -> samples, for reasons that occurred."""
        counts = zip(SKIP_REASONS, self._row(task)[3:].tolist(), strict=True)
        return {reason: count for reason, count in counts if count}

    def check(self, task: str, planned: int, where: str) -> None:
        """Compares with the plan: the positions 0..planned-1, each once.

        Raises:
            RuntimeError: positions were lost, repeated, or never asked for.
        """
        seen, skipped = self.seen(task), sum(self.skipped(task).values())
        sums = (planned * (planned - 1) // 2, (planned - 1) * planned * (2 * planned - 1) // 6)
        found = self._row(task)[: _SQUARES + 1].tolist()
        if seen + skipped != planned or found != [number % _MODULUS for number in sums]:
            raise RuntimeError(
                f"the ledger does not add up ({where}): {planned} samples planned, {seen} seen, "
                f"{skipped} skipped; samples were lost, repeated, or never asked for. This is a "
                "fault of Ark: please report it with this message"
            )

    def _row(self, task: str) -> np.ndarray:
        return self.numbers[self.tasks.index(task)]
