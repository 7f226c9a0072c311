"""The seal of a checkpoint file, by which it tells whether its bytes are those that were written.

A file of `torch.save` is a zip archive. The seal is the archive's comment, which every zip reader
skips, torch's too: step, size, and a checksum of all bytes before the checksum. It is in the file
and not beside it, because two files cannot be renamed at once: a crash in between would make an
intact checkpoint look damaged. And a copy of the file brings its seal along.

The archive's own checksums do not serve: torch does not compare them when it loads.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from ark.errors import ConfigError

_HEAD = b"ark checkpoint: step %012d, %016d bytes, xxh3_128 "
_SEAL = re.compile(rb"ark checkpoint: step (\d{12}), (\d{16}) bytes, xxh3_128 ([0-9a-f]{32})")
_DIGEST = 32
_SIZE = len(_HEAD % (0, 0)) + _DIGEST
_END = 22  # bytes of the record that ends an archive; its last two are the length of the comment
_CHUNK = 1 << 23


class DamagedCheckpoint(ConfigError):
    """A checkpoint's bytes are not those that were written."""


@dataclass(frozen=True)
class Seal:
    """What a checkpoint says of itself.

    Args:
        step: optimiser steps done.
        size: of the file in bytes.
        digest: xxh3_128 of all bytes before it, in hexadecimal.
    """

    step: int
    size: int
    digest: str


def save_sealed(checkpoint: Mapping[str, Any], file: BinaryIO) -> tuple[int, OSError | None]:
    """`torch.save` with a seal at the end.

    Args:
        checkpoint: its "global_step" goes into the seal.

    Returns:
        How many bytes the file needs, and what kept the disk from taking them all.
    """
    sealing = _Sealing(file)
    torch.save(checkpoint, sealing)  # type: ignore[arg-type]  # it only writes
    sealing.close(int(checkpoint.get("global_step", 0)))
    return sealing.size, sealing.error


class _Sealing:
    """Passes on what `torch.save` writes, and holds the archive's end back until `close`.

    An error of the disk is kept instead of raised: torch's C++ writer would answer it with one of
    its own, which names no cause. What follows is only counted.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, 0
        self.error: OSError | None = None
        self._hash, self._held = xxhash.xxh3_128(), b""

    def write(self, data: memoryview) -> int:
        if len(data) >= _END:
            self._pass_on(self._held)
            self._pass_on(data[:-_END])
            self._held = bytes(data[-_END:])
        else:
            joined = self._held + bytes(data)
            self._pass_on(joined[:-_END])
            self._held = joined[-_END:]
        return len(data)

    def flush(self) -> None:
        """`torch.save` calls it at its end; who opened the file flushes it."""

    def close(self, step: int) -> None:
        head = _HEAD % (step, self.size + _END + _SIZE)
        self._pass_on(self._held[:-2] + _SIZE.to_bytes(2, "little") + head)
        self._pass_on(self._hash.hexdigest().encode())

    def _pass_on(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self.error is None:
            try:
                self.file.write(data)
                self._hash.update(data)
            except OSError as error:
                self.error = error


def read_seal(path: Path) -> Seal | None:
    """The seal, without a look at what it seals. None of a file of plain `torch.save`.

    Raises:
        DamagedCheckpoint: the file has not the size that was written, or another end.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _SIZE, 0))
        tail = file.read()
    if match := _SEAL.fullmatch(tail):
        seal = Seal(int(match[1]), int(match[2]), match[3].decode())
        if seal.size != size:
            raise DamagedCheckpoint(
                f"checkpoint {path} is damaged: {seal.size:,} bytes were written, it has {size:,}"
            )
        return seal
    end = tail[-_END:]
    if end.startswith(b"PK\5\6") and end.endswith(b"\0\0"):  # an archive without a comment
        return None
    raise DamagedCheckpoint(
        f"checkpoint {path} is cut off, damaged or none: its {size:,} bytes do not end as one does"
    )


def verify(path: Path) -> Seal | None:
    """Reads the whole file. None if it has no seal but is a sound file of plain `torch.save`.

    Raises:
        DamagedCheckpoint: names the file and what is wrong with it.
    """
    try:
        seal = read_seal(path)
        digest = _digest(path, seal.size) if seal else ""
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if seal is None:
        _verify_plain(path)
    elif digest != seal.digest:
        raise DamagedCheckpoint(
            f"checkpoint {path} is damaged: its {seal.size:,} bytes do not have the checksum that "
            "they were written with"
        )
    return seal


def _digest(path: Path, size: int) -> str:
    found, left = xxhash.xxh3_128(), size - _DIGEST
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()


def _verify_plain(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # whatever a damaged archive makes zipfile raise
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {error}") from error
    if bad is not None:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {bad} in it")
