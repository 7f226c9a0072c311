"""Downloads into a bounded folder that the processes of one node share.

    <folder>/<2 letters>/<key>      whole files; only a rename puts them there
    <folder>/part/<key>~<random>    downloads in flight
    <folder>/lock/<key>.lock        empty; locked by who downloads `key`; `all.lock`: by who counts

A download's file is stretched to its final size before the first byte arrives. So the sizes in the
folder add up to what is used or promised, and a killed process's promise goes with its file.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from ark.types import ConfigError

# what eviction may remove: a folder that also holds other things loses none of them
WHOLE = re.compile(r"(url-)?[0-9a-f]{64}(\.[A-Za-z0-9]{1,16})?")
PART = re.compile(WHOLE.pattern + r"~[0-9a-f]{16}")
STEP = 8 << 20  # bytes promised at a time for a download of unknown size
POLL = 0.2  # seconds between looks for room while other downloads hold it
BACKOFF = 1.0  # seconds before the second attempt; doubles, up to LONGEST
LONGEST = 30.0  # seconds

T = TypeVar("T")
log = logging.getLogger("ark")


@dataclass(frozen=True)
class CacheConfig:
    """Where remote files are kept, and how hard they are fetched.

    Args:
        folder: on a disk of the node's own; empty: $ARK_CACHE, else ~/.cache/ark.
        gigabytes: limit of the folder in 1e9 bytes; the least recently used files make room.
        retries: attempts after the first one.
        timeout: seconds without a byte after which an attempt has failed.
    """

    folder: str = ""
    gigabytes: float = 100.0
    retries: int = 5
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("gigabytes", "timeout"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"cache.{name} is {value}; expected a number above 0")
        if self.retries < 0:
            raise ConfigError(f"cache.retries is {self.retries}; expected 0 or more")

    @property
    def path(self) -> Path:
        folder = self.folder or os.environ.get("ARK_CACHE") or "~/.cache/ark"
        return Path(folder).expanduser().absolute()


class Interrupted(Exception):
    """An attempt failed in a way that another attempt may not."""


class Damaged(Exception):
    """The bytes are not the expected ones."""


@dataclass(frozen=True)
class RemoteFile:
    """One file to download."""

    where: str  # its URL without credentials, for messages
    target: Path  # its place in the cache
    size: int | None  # expected bytes, None where unknown
    sha256: str | None  # expected checksum in lower case, None where unknown
    chunks: Callable[[], Generator[bytes, None, None]]  # a new download; may raise Interrupted


class Cache:
    """The folder of a `CacheConfig`. Makes nothing before it is used; can be pickled."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.folder = config.path
        self.limit = int(config.gigabytes * 1e9)

    def fetch(self, file: RemoteFile) -> None:
        """Makes `file.target` be there: downloaded once for all processes, verified, retried.

        Raises:
            ConfigError: no success after all attempts, damaged twice, or it does not fit the cache.
            OSError: the folder cannot be written.
        """
        if self.use(file.target, file.size):
            return
        with self.lock(file.target.name):
            if not self.use(file.target, file.size):  # another process may have been faster
                self.retried(lambda: self._download(file), file.where)

    def retried(self, action: Callable[[], T], where: str) -> T:
        """`action()`, again after Interrupted (backing off) and once after Damaged."""
        attempts, damaged = self.config.retries + 1, 0

        def again(error: BaseException) -> bool:
            nonlocal damaged
            damaged += isinstance(error, Damaged)
            first = isinstance(error, Damaged) and damaged == 1
            return first or isinstance(error, Interrupted)

        def tell(state: RetryCallState) -> None:
            cause = state.outcome and state.outcome.exception()
            log.warning("%s: attempt %d of %d: %s", where, state.attempt_number, attempts, cause)

        trying = Retrying(
            stop=stop_after_attempt(attempts),
            wait=wait_exponential_jitter(BACKOFF, LONGEST, jitter=BACKOFF),
            retry=retry_if_exception(again),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return trying(action)
        except Damaged as error:
            raise ConfigError(
                f"{where}: {error}; upload the file again, or fetch the index that belongs to it"
            ) from None
        except Interrupted as error:
            raise ConfigError(
                f"{where}: no success in {attempts} attempts, the last: {error}; look after the "
                "network and the server, or raise cache.retries or cache.timeout"
            ) from None

    def use(self, path: Path, size: int | None) -> bool:
        """Whether `path` is there, with `size` bytes where given; counts as a use of it."""
        with suppress(OSError):  # not there, or a cache that somebody filled and made read-only
            os.utime(path)
        try:
            return size in (None, path.stat().st_size)
        except FileNotFoundError:
            return False

    def lock(self, name: str) -> FileLock:
        """The lock of the file `name`: held by the one process that downloads it."""
        folder = self.folder / "lock"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    def _download(self, file: RemoteFile) -> None:
        digest = hashlib.sha256()
        with self._part(file) as part, closing(file.chunks()) as chunks:
            for chunk in chunks:
                if file.size is not None and part.received + len(chunk) > file.size:
                    raise Damaged(f"the server sends more than the expected {file.size} bytes")
                if file.sha256 is not None:
                    digest.update(chunk)
                part.write(chunk)
            if file.size not in (None, part.received):
                raise Interrupted(f"{part.received} of {file.size} bytes arrived")
            if file.sha256 not in (None, digest.hexdigest()):
                raise Damaged(f"sha256 is {digest.hexdigest()}, expected {file.sha256}")
            part.publish()

    @contextmanager
    def _part(self, file: RemoteFile) -> Iterator[Part]:
        """A download that becomes `file.target` by `Part.publish`, or is removed at the end."""
        folder, name = self.folder / "part", file.target.name
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{name}~*"):
            leftover.unlink(missing_ok=True)  # its writer is dead, since its lock is ours
        part = Part(self, file, folder / f"{name}~{secrets.token_hex(8)}")
        try:
            if file.size is not None:
                part.promise(file.size, wait=True)
            yield part
        finally:
            part.close()

    def make_room(self, part: Path, size: int) -> bool:
        """Evicts files and stretches `part` to `size`; False: other downloads take the room."""
        with self.lock("all"):
            self._sweep(part)
            whole = sorted(self._whole())
            free = self.limit - sum(file[1] for file in whole)
            free -= sum(held for _, held, path in self._parts() if path != part)
            if free + sum(file[1] for file in whole) < size:
                return False
            for _, freed, path in whole:
                if free >= size:
                    break
                path.unlink(missing_ok=True)
                free += freed
            os.truncate(part, size)
        return True

    def _whole(self) -> list[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of every whole file."""
        return _files(self.folder.glob("[0-9a-f][0-9a-f]/*"), WHOLE)

    def _parts(self) -> list[tuple[int, int, Path]]:
        return _files(self.folder.glob("part/*"), PART)

    def _sweep(self, own: Path) -> None:
        """Removes the parts of killed processes: nobody holds their locks."""
        for _, _, path in self._parts():
            name = path.name.partition("~")[0]
            if name == own.name.partition("~")[0]:
                continue
            with suppress(Timeout), self.lock(name).acquire(blocking=False):
                path.unlink(missing_ok=True)


class Part:
    """One download in flight: unpublished bytes that the cache already counts."""

    def __init__(self, cache: Cache, remote: RemoteFile, path: Path) -> None:
        self.path, self.received, self._promised = path, 0, 0
        self._cache, self._remote = cache, remote
        self._file = path.open("xb")

    def promise(self, size: int, wait: bool) -> None:
        """Makes the cache count this part as `size` bytes.

        Where other downloads hold the room: waits for it, or raises Interrupted. Only a part that
        holds nothing may wait, or two that grow would wait for each other.
        """
        if size > self._cache.limit:
            raise ConfigError(
                f"{self._remote.where}: its {size / 1e9:.3g} GB do not fit the cache of "
                f"{self._cache.limit / 1e9:.3g} GB in {self._cache.folder}; raise cache.gigabytes"
            )
        while not self._cache.make_room(self.path, size):
            if not wait:
                raise Interrupted("the cache is full of other downloads")
            time.sleep(POLL)
        self._promised = size

    def write(self, chunk: bytes) -> None:
        size = self.received + len(chunk)
        if size > self._promised:
            self.promise(max(size, min(self._promised + STEP, self._cache.limit)), wait=False)
        self._file.write(chunk)
        self.received = size

    def publish(self) -> None:
        """Moves the whole file to its place, where a crash of the machine leaves all or nothing."""
        self._file.truncate(self.received)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remote.target.parent.mkdir(exist_ok=True)
        with self._cache.lock("all"):  # a count sees the file once
            os.rename(self.path, self._remote.target)

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _files(paths: Iterable[Path], names: re.Pattern[str]) -> list[tuple[int, int, Path]]:
    found = []
    for path in paths:
        if names.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process removed it just now
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
    return found
