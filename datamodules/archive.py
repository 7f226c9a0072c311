"""The members of a tar, sample by sample, without taking anything in it on trust."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

_END = 2 * tarfile.BLOCKSIZE  # an archive ends with two blocks of zeros
Fault = Callable[[str, str, str], None]  # called with ("", member, problem)


class Member(NamedTuple):
    """One file in a tar."""

    ending: str  # of its name, in lower case: all after the first dot
    offset: int  # of its content, in bytes
    size: int


def read_archive(file: BinaryIO, size: int, fault: Fault) -> Iterator[tuple[str, list[Member]]]:
    """Each sample's key and members: those that follow one another and share a key, as WebDataset
    groups them.

    Args:
        size: of the file in bytes.
        fault: told of everything that is not as it should be; what can be read is read.
    """
    members = _members(file, size, fault)
    for key, group in groupby(members, lambda member: member[0]):
        yield key, [member for _, member in group]


def _members(file: BinaryIO, size: int, fault: Fault) -> Iterator[tuple[str, Member]]:
    end = 0
    try:
        # "r:" refuses compressed tars: a member of those cannot be read alone
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end > size:
                    fault("", info.name, "the tar ends in the middle of this member")
                    return
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    fault("", info.name, "a link or special file; store plain files only")
                elif (name := _split(info.name)) is None:
                    fault("", info.name, f"{info.name!r} is no name of the form <key>.<ending>")
                else:
                    yield name[0], Member(name[1], info.offset_data, info.size)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        fault("", "", f"not a plain tar, or damaged ({error}); write or copy it again")
        return
    _check_end(file, end, fault)


def _check_end(file: BinaryIO, end: int, fault: Fault) -> None:
    """Python's tarfile takes a damaged header in the middle for the end, without a word."""
    file.seek(end)
    rest = file.read()
    if len(rest) < _END or rest.strip(b"\0"):
        fault(
            "",
            "",
            f"after {end} bytes there is no end of archive: a damaged header, or cut short; write "
            "or copy it again",
        )


def _split(name: str) -> tuple[str, str] | None:
    """`dir/key.some.ending` -> ("dir/key", "some.ending"); None where the name is not like that."""
    folder, _, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    if not stem or not ending or not name.isprintable():
        return None
    if name.startswith("/") or ".." in folder.split("/"):
        return None
    return (f"{folder}/{stem}" if folder else stem), ending.lower()
