"""One image at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Busy(Exception):
    """As many wait as may wait."""


class Turns:
    """torch uses all processors for one image, so others wait; each holds its upload in memory.

    Args:
        most: requests that are uploading, waiting or computed at once.
    """

    def __init__(self, most: int) -> None:
        self._lock, self._most, self._here = asyncio.Lock(), most, 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue.

        Raises:
            Busy: there is none.
        """
        if self._here >= self._most:
            raise Busy
        self._here += 1
        try:
            yield
        finally:
            self._here -= 1

    def turn(self) -> asyncio.Lock:
        """To be held while computing."""
        return self._lock
