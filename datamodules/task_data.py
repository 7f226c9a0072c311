"""One task's samples in one split, by number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ark.types import TaskSpec
from datamodules.tars.shards import BadSample, Sample, ShardReader, StoredSample
from datamodules.uncertain import Uncertain


class TaskData:
    """One task's samples in one split: those that carry its annotation.

    They are numbered 0..size-1 in stored order; nothing is read before a sample is asked for.

    Args:
        uncertain: what uncertain labels become in training; unknown if None.
        drawn: for each shard the ordinals of the samples to use, in stored order; None: of all.
    """

    def __init__(
        self,
        spec: TaskSpec,
        reader: ShardReader,
        split: str,
        uncertain: Uncertain | None = None,
        drawn: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.spec, self.reader, self.split, self.uncertain = spec, reader, split, uncertain
        self._stored = reader.index.annotated(split, spec.name)  # (S,) samples of each shard
        self._drawn = drawn
        self.lengths = self._stored if drawn is None else np.array([len(d) for d in drawn])
        self.size = int(self.lengths.sum())

    def read(self, shard: int, ordinal: int) -> Sample:
        """The `ordinal`-th of this task's samples in `shard`; BadSample where it is damaged."""
        found = self.reader.shard(self.split, shard)
        rows = found.table.annotated.get(self.spec.name, ())
        if len(rows) != self._stored[shard]:
            file = self.reader.index.split(self.split).shards[shard].file
            raise BadSample(
                f"{file}: its table has {len(rows)} samples with {self.spec.name!r}, the index "
                f"{self._stored[shard]}; index the tars anew",
                "shard",
            )
        if self._drawn is not None:
            ordinal = self._drawn[shard][ordinal]
        return self.reader.load(StoredSample(found, int(rows[ordinal])), self.spec.name)

    def numbers(self, shards: np.ndarray, ordinals: np.ndarray) -> list[int]:
        """The inverse of `locate`."""
        return (self._ends[shards] - self.lengths[shards] + ordinals).tolist()

    def locate(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """(shard, ordinal) of samples by number."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        ordinals = np.asarray(numbers) - (self._ends[shards] - self.lengths[shards])
        return list(zip(shards.tolist(), ordinals.tolist(), strict=True))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)


def read(data: TaskData, shard: int, ordinal: int) -> Sample | BadSample:
    try:
        return data.read(int(shard), int(ordinal))
    except BadSample as error:
        return error
