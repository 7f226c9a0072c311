"""Downloads the shards of URLs before a batch needs them; the order says which it will need."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from datamodules.tars.shards import ShardReader

AHEAD = 64  # batches of a rank: time for a shard to come while earlier ones are in use
_THREADS = 4


class Prefetcher:
    """Asks for shards in the background.

    What fails here is left to the batch that needs it: that one says why.
    """

    def __init__(self) -> None:
        self._process = 0
        self._asked: dict[tuple[str, str], Future[object]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def want(self, reader: ShardReader, split: str, shards: Iterable[int]) -> None:
        """Begins to fetch `shards` of `split`, unless that is under way."""
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            self._process, self._asked = os.getpid(), {}
            self._pool = ThreadPoolExecutor(_THREADS)
        self._asked = {name: job for name, job in self._asked.items() if not job.done()}
        for number in shards:
            name = (reader.index.storage.where, reader.index.split(split).shards[number].file)
            if name not in self._asked:
                self._asked[name] = self._pool.submit(reader.fetch, split, number)

    def __getstate__(self) -> dict[str, object]:
        return Prefetcher().__dict__
