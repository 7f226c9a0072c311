"""What one tar holds: its table, its class counts and everything that is wrong with it.

The index is a pure function of the tars and of where annotations are stored in them, so our own
writer, `ark shards index` and `ark shards validate` all come through here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import tally, to_arrays
from datamodules.archive import Member, read_archive
from datamodules.hashes import sha256_of_file
from datamodules.images import decode_image, image_size
from datamodules.shard_table import ABSENT, ShardTable, member_hash
from datamodules.stored import IMAGE, IMAGE_ENDINGS, JSON, Stored, parse_json

Counts = dict[str, dict[str, dict[str, int]]]  # annotation -> class -> known, present, boxes


class Fault(NamedTuple):
    """One thing that is wrong in a shard."""

    shard: str
    key: str  # of the sample; "" where it is the shard
    field: str  # a member, an annotation, or "" for the whole
    problem: str


@dataclass
class Scan:
    """One tar. Samples with a fault are not in the table."""

    file: str
    bytes: int
    sha256: str
    table: ShardTable
    counts: Counts
    faults: list[Fault] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # endings of members that nothing reads
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of every image
    patients: dict[str, str] = field(default_factory=dict)  # key -> patient, where one is stated


def scan_shard(path: Path, file: str, stored: Mapping[str, Stored], deep: bool = False) -> Scan:
    """Reads a whole tar.

    Args:
        path: where it lies now, which for a URL is somewhere in the cache.
        file: its name in the dataset, for messages.
        stored: what its samples are annotated with, and where.
        deep: also decodes every image and mask and checks every annotation against it.
    """
    return _Scanner(path, file, stored, deep).run()


def zero_counts(stored: Mapping[str, Stored]) -> Counts:
    return {
        name: {
            c: {"known": 0, "present": 0, **({"boxes": 0} if one.spec.kind == "detection" else {})}
            for c in one.spec.classes
        }
        for name, one in stored.items()
    }


def add_counts(total: Counts, more: Counts) -> None:
    for annotation, classes in more.items():
        for name, counts in classes.items():
            for what, number in counts.items():
                total[annotation][name][what] += number


class _Scanner:
    """Fills a Scan, sample after sample."""

    def __init__(self, path: Path, file: str, stored: Mapping[str, Stored], deep: bool) -> None:
        self.path, self.stored, self.deep = path, stored, deep
        self.keys: list[str] = []
        self.rows: dict[str, list[tuple[int, int, int]]] = {IMAGE: [], JSON: []}
        for one in stored.values():
            self.rows |= {name: [] for name in (one.member, *one.mask_members.values())}
        self.annotated: dict[str, list[int]] = {name: [] for name in stored}
        self.scan = Scan(file, 0, "", ShardTable([], {}, {}), zero_counts(stored))
        self._seen: set[str] = set()

    def run(self) -> Scan:
        try:
            self.scan.bytes, self.scan.sha256 = self.path.stat().st_size, sha256_of_file(self.path)
            with self.path.open("rb") as self.file:
                for key, members in read_archive(self.file, self.scan.bytes, self._fault):
                    self._sample(key, members)
        except OSError as error:
            self._fault("", "", f"cannot be read ({error})")
        columns = {
            name: np.array(rows, np.int64).reshape(-1, 3).T for name, rows in self.rows.items()
        }
        annotated = {name: np.array(rows, np.int64) for name, rows in self.annotated.items()}
        self.scan.table = ShardTable(self.keys, columns, annotated)
        return self.scan

    def _fault(self, key: str, name: str, problem: str) -> None:
        self.scan.faults.append(Fault(self.scan.file, key, name, problem))

    def _sample(self, key: str, members: list[Member]) -> None:
        before = len(self.scan.faults)
        if key in self._seen:
            self._fault(key, "", "the key is there twice; samples must be in one piece, each once")
        self._seen.add(key)
        found = self._columns(key, members)
        contents = {name: self._read(member) for name, member in found.items()}
        if IMAGE not in found:
            self._fault(key, IMAGE, f"no image; expected one of {', '.join(IMAGE_ENDINGS)}")
        size = self._check_image(key, contents.get(IMAGE))
        values = self._check_annotations(key, contents, size)
        patient = self._patient(key, contents.get(JSON))
        if len(self.scan.faults) > before:
            return
        row = len(self.keys)
        self.keys.append(key)
        self.scan.sizes.append(size)
        for name, rows in self.rows.items():
            member = found.get(name)
            absent = (ABSENT, ABSENT, 0)
            rows.append(
                (member.offset, member.size, member_hash(contents[name])) if member else absent
            )
        for annotation, value in values.items():
            self.annotated[annotation].append(row)
            self._count(annotation, value, contents)
        if patient is not None:
            self.scan.patients[key] = patient

    def _columns(self, key: str, members: list[Member]) -> dict[str, Member]:
        """Column of the table -> member; a column of an annotation comes before the image's."""
        found: dict[str, Member] = {}
        for member in members:
            ending = member.ending
            is_image = ending in IMAGE_ENDINGS and ending not in self.rows
            column = IMAGE if is_image else ending
            if column not in self.rows:
                self.scan.unread[ending] += 1
            elif column in found:
                self._fault(key, column, f"the sample has two: {found[column].ending} and {ending}")
            else:
                found[column] = member
        return found

    def _read(self, member: Member) -> bytes:
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _check_image(self, key: str, data: bytes | None) -> tuple[int, int]:
        if data is None:
            return 0, 0
        try:
            if self.deep:
                decode_image(data, "image")
            return image_size(data, "image")
        except ConfigError as error:
            self._fault(key, IMAGE, str(error))
            return 0, 0

    def _check_annotations(
        self, key: str, contents: Mapping[str, bytes], size: tuple[int, int]
    ) -> dict[str, Any]:
        values = {}
        for name, one in self.stored.items():
            try:
                value = one.value(contents.get, one.member)
                if value is None:
                    continue
                self._tally(one, value, contents)
                if self.deep and size != (0, 0):
                    masks = one.masks(value, contents.get, one.member)
                    to_arrays(one.spec, value, masks, size, one.member)
                values[name] = value
            except ConfigError as error:
                self._fault(key, name, str(error))
        return values

    def _tally(self, one: Stored, value: Any, contents: Mapping[str, bytes]) -> Counter[str]:
        """Which classes the value knows (0 or more times present); ConfigError for unknown ones."""
        seen = tally(one.spec, value, _shown(one, value, contents))
        counted = Counter({one.spec.classes[one.spec.index(c, one.name)]: 0 for c in seen.known})
        for name in seen.present:
            counted[one.spec.classes[one.spec.index(name, one.name)]] += 1
        return counted

    def _count(self, annotation: str, value: Any, contents: Mapping[str, bytes]) -> None:
        one, counts = self.stored[annotation], self.scan.counts[annotation]
        for name, times in self._tally(one, value, contents).items():
            counts[name]["known"] += 1
            counts[name]["present"] += bool(times)
            if one.spec.kind == "detection":
                counts[name]["boxes"] += times

    def _patient(self, key: str, data: bytes | None) -> str | None:
        if data is None:
            return None
        try:
            patient = parse_json(data, JSON).get("patient")
        except ConfigError as error:
            self._fault(key, JSON, str(error))
            return None
        return str(patient) if isinstance(patient, str | int) else None


def _shown(one: Stored, value: Any, contents: Mapping[str, bytes]) -> list[str]:
    """Classes of a segmentation whose mask is not empty."""
    if one.spec.kind != "segmentation":
        return []
    if one.values or "rles" in value:
        masks = one.masks(value, contents.get, one.member)
        return [name for name, mask in masks.items() if mask.any()]
    return [name for name, member in one.mask_members.items() if member in contents]
