"""The members of a tar, sample by sample, without taking anything in it on trust."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

_END = 2 * tarfile.BLOCKSIZE  # an archive ends with two blocks of zeros
_META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset keeps for itself and passes over
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
Fault = Callable[[str, str, str], None]  # called with (key, member, problem)


class Member(NamedTuple):
    """One file in a tar."""

    ending: str  # of its name, in lower case: all after the first dot
    offset: int  # of its content, in bytes
    size: int


class _Damaged(Exception):
    """Nothing behind this place of the tar can be read."""


def read_archive(file: BinaryIO, size: int, fault: Fault) -> Iterator[tuple[str, list[Member]]]:
    """Each sample's key and members: those that follow one another and share a key, as WebDataset
    groups them.

    Args:
        size: of the file in bytes.
        fault: told of everything that is not as it should be; what can be read is read, but for the
            sample at which a damaged tar breaks off, since nobody knows what it lacks.
    """
    key = ""
    try:
        for key, group in groupby(_members(file, size, fault), lambda member: member[0]):
            yield key, [member for _, member in group]
    except _Damaged as damage:  # comes while the last group is read
        fault(key, "", str(damage))


def _members(file: BinaryIO, size: int, fault: Fault) -> Iterator[tuple[str, Member]]:
    end = 0
    try:
        # "r:" refuses compressed tars: a member of those cannot be read alone
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not info.isdir() and not _META.match(info.name):
                    yield from _member(info, fault)
                if end > size:
                    raise _Damaged(f"the tar ends in the middle of {_shown(info)}; copy it again")
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise _Damaged(_unreadable(file, error)) from error
    if size < end + _END or not _is_zero(file, end):
        # Python's tarfile takes a damaged header in the middle for the end, without a word
        raise _Damaged(
            f"after byte {end} comes no member and no end of archive: a damaged header, or cut "
            "short; write or copy it again"
        )


def _member(info: tarfile.TarInfo, fault: Fault) -> Iterator[tuple[str, Member]]:
    """The member and its key, unless there is a fault in it."""
    key, ending = _split(info.name) or ("", "")
    if not info.isreg() or info.issparse():
        fault(key, ending or _shown(info), "a link or special file; store plain files only")
    elif not key:
        problem = "its name is not of the form [folder/]key.ending; rename or remove it"
        fault("", _shown(info), problem)
    else:
        yield key, Member(ending, info.offset_data, info.size)


def _shown(info: tarfile.TarInfo) -> str:
    """The name for messages, where no terminal and no CSV can take it for anything else."""
    return info.name if info.name.isprintable() else ascii(info.name)[1:-1]


def _unreadable(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    start = file.read(8)
    for magic, how in _PACKED.items():
        if start.startswith(magic):
            return f"compressed with {how}, so that no sample can be read alone; unpack it"
    return f"not a plain tar, or damaged ({error}); write or copy it again"


def _is_zero(file: BinaryIO, start: int) -> bool:
    """Whether the rest of the file is zeros; read in pieces, for it may be all of a large tar."""
    file.seek(start)
    return not any(piece.strip(b"\0") for piece in iter(lambda: file.read(1 << 20), b""))


def _split(name: str) -> tuple[str, str] | None:
    """`dir/key.some.ending` -> ("dir/key", "some.ending"); None where the name is not like that."""
    folder, _, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    if not stem or not ending or not name.isprintable():
        return None
    if name.startswith("/") or ".." in folder.split("/"):
        return None
    return (f"{folder}/{stem}" if folder else stem), ending.lower()
