"""Checkpoints on disk: each is there whole or not at all, and the newest intact one is found."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ark.checkpoints.sealed_folder import step_of_folder, verify_folder
from ark.checkpoints.sealing import DamagedCheckpoint, read_seal, save_sealed, verify
from ark.errors import ConfigError

log = logging.getLogger("ark")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HALVES = ".*.ckpt.tmp"


def write_checkpoint(
    checkpoint: Mapping[str, Any], path: Path, previous: Path | None = None
) -> None:
    """Writes a sealed file that replaces `path` at once and survives a loss of power.

    Args:
        checkpoint: what `torch.save` takes; its "global_step" goes into the seal.
        previous: the name that the present `path` gets; without it that file is lost.

    Raises:
        ConfigError: the disk is full or cannot be written; `path` is what it was.
    """
    needed = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, previous) as file:
            needed, error = save_sealed(checkpoint, file)
            if error is not None:
                raise error
    except OSError as error:
        raise unwritable(path, error, needed) from error


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, which replaces `target` at once; a copy where disks cannot.

    Raises:
        ConfigError: as of `write_checkpoint`.
    """
    try:
        _link(source, target)
    except OSError as error:
        raise unwritable(target, error, source.stat().st_size) from error


def _link(source: Path, target: Path) -> None:
    half = _half(target)
    half.unlink(missing_ok=True)
    if target.is_dir():
        remove(target)
    try:
        os.link(source, half)
    except OSError:
        with source.open("rb") as original, _replacing(target) as copy:
            shutil.copyfileobj(original, copy, 1 << 23)
        return
    os.replace(half, target)
    half.unlink(missing_ok=True)  # two names of one file do not replace each other
    sync_folder(target.parent)


def newest_intact(folder: Path, say: Callable[[str], None] = log.warning) -> Path:
    """The checkpoint of the most steps (of several the last written) whose bytes are right.

    Changes nothing, so that every rank finds the same.

    Args:
        say: is told of damaged files that would have come before, and of writes cut off.

    Raises:
        ConfigError: there is none; names each file and what is wrong with it.
    """
    for half in sorted(folder.glob(_HALVES)):
        say(f"checkpoint {folder / half.name[1:-4]}: a write was cut off, or goes on elsewhere")
    found: list[tuple[int, int, Path]] = []
    damages: list[str] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((_step(path), path.stat().st_mtime_ns, path))
        except DamagedCheckpoint as error:
            damages.append(str(error))
    for step, _, path in sorted(found, key=lambda found: (-found[0], -found[1], found[2])):
        try:
            sealed = verify_checkpoint(path)
        except DamagedCheckpoint as error:
            damages.append(str(error))
            continue
        for damage in damages:
            say(f"{damage}; going on from {path.name}, step {step}")
        if not sealed:
            say(f"checkpoint {path} has no seal: checked by the weaker sums of its archive alone")
        return path
    raise ConfigError("; ".join([f"ckpt_path: no checkpoint in {folder} is intact", *damages]))


def verify_checkpoint(path: Path) -> bool:
    """Reads all of a file, or of a folder of shards. Whether it has a seal: a file of plain
    `torch.save` has none.

    Raises:
        DamagedCheckpoint: names it and what is wrong with it.
    """
    if path.is_dir():
        verify_folder(path)
        return True
    return verify(path) is not None


def remove_halves(folder: Path) -> None:
    """Removes what writes that were cut off left behind; for the one process that writes there."""
    for half in folder.glob(_HALVES):
        remove(half)


def remove(path: Path) -> None:
    """A file, or a folder of shards; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def give_way(path: Path, previous: Path | None = None) -> None:
    """Takes what is at `path`, if anything, out of the way of a folder, or a folder out of the way.

    Args:
        previous: the name that it gets; without it, it is lost.
    """
    if previous is not None and path.exists():
        remove(previous)
        os.replace(path, previous)
    remove(path)


def check_writable(folder: Path) -> None:
    """Writes a file into `folder`, or where it would be made, and removes it.

    Raises:
        ConfigError: names the folder and the reason.
    """
    parents = folder, *folder.absolute().parents
    there = next(path for path in parents if os.path.exists(path))  # Path.exists may raise
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(folder / "anything", error, 4096) from error


@contextmanager
def _replacing(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and on the disk."""
    half = _half(path)
    try:
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():  # a file does not replace a folder
            give_way(path, previous)
        elif previous is not None and path.is_file():
            _link(path, previous)
        os.replace(half, path)
        sync_folder(path.parent)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _half(path: Path) -> Path:
    """Where `path` is written before it is renamed: in the same folder, with another suffix."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(number)


def unwritable(path: Path, error: OSError, needed: int) -> ConfigError:
    what, todo = error.strerror or str(error), "mend its rights"
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        what += f": {path.name} needs {needed:,} bytes, {free:,} are free"
        todo = "make room"
    return ConfigError(
        f"run.root: cannot write {path.name} into {path.parent}: {what}; {todo}, or choose another "
        "--run.root. The checkpoints that are there are untouched"
    )


def _step(path: Path) -> int:
    """Optimiser steps done in a checkpoint that need not be intact, from a look at its end."""
    try:
        if path.is_dir():
            return step_of_folder(path)
        seal = read_seal(path)
        if seal is not None:
            return seal.step
        return int(torch.load(path, "cpu", weights_only=True, mmap=True)["global_step"])
    except DamagedCheckpoint:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        raise DamagedCheckpoint(f"checkpoint {path} cannot be read: {error}") from error
