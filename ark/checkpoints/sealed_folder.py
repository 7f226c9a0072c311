"""The seal of a checkpoint that is a folder, of which each rank wrote its part: see
`ark.checkpoints.shards`.

`seal.json` holds the step, and size and checksum of every other file. It is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ark.checkpoints.sealing import DamagedCheckpoint

SEAL = "seal.json"
_CHUNK = 1 << 23

Facts = dict[str, tuple[int, str]]  # file -> bytes, and their xxh3_128 in hexadecimal


def facts_of(folder: Path, names: Iterable[str]) -> Facts:
    """What a seal says of these files; reads them.

    Raises:
        OSError: one cannot be read.
    """
    found: Facts = {}
    for name in names:
        digest, size = xxhash.xxh3_128(), 0
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        found[name] = size, digest.hexdigest()
    return found


def seal_folder(folder: Path, step: int, facts: Mapping[str, tuple[int, str]]) -> None:
    """Returns when the seal is on the disk."""
    with (folder / SEAL).open("w") as file:
        json.dump({"step": step, "files": facts}, file)
        file.flush()
        os.fsync(file.fileno())


def step_of_folder(folder: Path) -> int:
    """Optimiser steps done, if every file has its size; their bytes are not looked at.

    Raises:
        DamagedCheckpoint: names the folder and what is wrong with it.
    """
    step, facts = _read(folder)
    for name, (size, _) in facts.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise DamagedCheckpoint(
                f"checkpoint {folder} is damaged: {name}: {error.strerror}"
            ) from error
        if found != size:
            raise DamagedCheckpoint(
                f"checkpoint {folder} is damaged: {size:,} bytes of {name} were written, it has "
                f"{found:,}"
            )
    return step


def verify_folder(folder: Path, part: int = 0, of: int = 1) -> None:
    """Reads the files, or every `of`-th of them from number `part` on.

    Raises:
        DamagedCheckpoint: as of `step_of_folder`; or bytes are not those that were written.
    """
    step_of_folder(folder)
    sealed = _read(folder)[1]
    names = sorted(sealed)[part::of]
    try:
        found = facts_of(folder, names)
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint {folder} cannot be read: {error}") from error
    for name in names:
        if found[name] != sealed[name]:
            raise DamagedCheckpoint(
                f"checkpoint {folder} is damaged: {name} does not have the checksum that it was "
                "written with"
            )


def _read(folder: Path) -> tuple[int, Facts]:
    try:
        seal: dict[str, Any] = json.loads((folder / SEAL).read_text())
        files = {name: (int(size), str(digest)) for name, (size, digest) in seal["files"].items()}
        return int(seal["step"]), files
    except FileNotFoundError as error:
        raise DamagedCheckpoint(
            f"checkpoint {folder} is no whole folder of shards: it has no {SEAL}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {SEAL} cannot be read: {error}") from error
