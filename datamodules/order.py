"""The order of samples as a pure function of (seed, stream, position).

A position counts the samples that a task's stream has given since the run began. Nothing here
holds state that matters: any rank, worker or resumed run asks for positions and gets the same
samples, at a cost that does not depend on how far the run is.

A pass is shuffled on two levels: the shards are laid end to end in a drawn order, and the samples
of each shard in a drawn order. This line is cut into lanes of equal length, as many as a global
batch has samples, and position p takes the next sample of lane p mod lanes:

    shard 7 | shard 2      | shard 9  | shard 4 | shard 1 |         the line
    lane 0      | lane 1       | lane 2     | lane 3      |         cut into 4 lanes
    0  4  8     1  5  9        2  6  10     3  7  11                positions in the pass

So a batch mixes as many shards as it has samples, while a rank, which has the same slots in every
batch, stays in its own few lanes and reads their shards one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ark.seeds import seed_of

_MIN_LANES = 32  # small batches take turns among more lanes than they have samples


class Order:
    """The samples of one stream, pass after pass.

    Args:
        lengths: (S,) samples of each shard.
        seed: of the run.
        stream: names the stream; streams of one run have orders of their own.
        batch_size: samples of one optimiser step over all ranks. The order depends on it, and not
            on how the ranks, workers and accumulated batches share it.
    """

    def __init__(
        self, lengths: np.ndarray | Sequence[int], seed: int, stream: str, batch_size: int
    ) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.size = int(self.lengths.sum())
        if not self.size:
            raise ValueError(f"stream {stream!r} has no sample")
        self.seed, self.stream = seed, stream
        self.lanes = batch_size * -(-_MIN_LANES // batch_size)
        self._lines: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def locate(self, positions: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
        """The samples at `positions`, (n,) int64.

        Each pass, positions [e * size, (e + 1) * size), holds every sample exactly once.

        Returns:
            shards: (n,) int64.
            ordinals: (n,) int64; the how-manieth of its shard's samples, in [0, lengths[shard]).
        """
        passes, offsets = np.divmod(np.asarray(positions, np.int64), self.size)
        shards, ordinals = np.empty_like(offsets), np.empty_like(offsets)
        for number in set(passes.tolist()):  # a batch may hold the end of one pass and a new start
            here = passes == number
            shards[here], ordinals[here] = self._in_pass(number, offsets[here])
        return shards, ordinals

    def _in_pass(self, number: int, offsets: np.ndarray) -> tuple[np.ndarray, list[int]]:
        lane, depth = offsets % self.lanes, offsets // self.lanes
        # lanes differ by one sample where the pass does not divide: the first ones are longer
        line = lane * (self.size // self.lanes) + np.minimum(lane, self.size % self.lanes) + depth
        shuffled, ends = self._line(number)
        place = np.searchsorted(ends, line, side="right")
        shards = shuffled[place]
        lengths = self.lengths[shards]
        into = line - (ends[place] - lengths)  # how far into its shard each is
        found = zip(shards.tolist(), lengths.tolist(), into.tolist(), strict=True)
        # a loop in Python: a batch is small, and a set of masks by shard takes longer
        drawn = [_permutation(n, self.seed, self.stream, number, shard)[i] for shard, n, i in found]
        return shards, drawn

    def _line(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The drawn order of the shards in pass `number`, and where each ends, in samples."""
        if number not in self._lines:
            shuffled = _permutation(len(self.lengths), self.seed, self.stream, number, "shards")
            # a batch may need two passes, so that two are kept
            self._lines = dict([*self._lines.items()][-1:])
            self._lines[number] = shuffled, np.cumsum(self.lengths[shuffled])
        return self._lines[number]


@lru_cache(maxsize=1024)
def _permutation(size: int, *drawn_for: object) -> np.ndarray:
    generator = np.random.default_rng(seed_of("order", *drawn_for))
    return generator.permutation(size).astype(np.int32)


def rank_positions(
    step: int, micro: int, rank: int, *, batch_size: int, accumulate: int, world: int
) -> range:
    """The positions that `rank` reads for micro-batch `micro` of a task's step `step`.

    All ranks and micro-batches of a step together are `batch_size` consecutive positions, in the
    same order at every world size; `accumulate * world` divides `batch_size`.
    """
    share = batch_size // (accumulate * world)
    start = step * batch_size + (micro * world + rank) * share
    return range(start, start + share)


def rank_share(size: int, rank: int, world: int) -> range:
    """The samples that `rank` evaluates, of 0..size-1 in stored order: each on exactly one rank."""
    return range(size * rank // world, size * (rank + 1) // world)
