"""The order of samples as a pure function of (seed, stream, position).

A position counts the samples that a task's stream has given since the run began. Nothing here
holds state: any rank, worker or resumed run asks for a position and gets the same sample.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ark.seeds import seed_of


@lru_cache(maxsize=64)
def _permutation(size: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_of("order", seed, stream, epoch)).permutation(size)


def sample_at(position: int, size: int, seed: int, stream: str) -> int:
    """The sample, in [0, size), at `position` of a stream over `size` samples.

    Each pass over the stream, `size` positions, holds every sample exactly once.
    """
    epoch, offset = divmod(position, size)
    return int(_permutation(size, seed, stream, epoch)[offset])


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
