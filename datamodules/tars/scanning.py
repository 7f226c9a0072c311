"""What one tar holds: its table, its class counts and everything that is wrong with it.

The index is a pure function of the tars and of where annotations are stored in them, so our own
writer, `ark shards index` and `ark shards validate` all come through here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ark.types import ConfigError
from datamodules.arrays import to_arrays
from datamodules.imaging.images import decode_image, image_size
from datamodules.tars.archive import Member, read_archive
from datamodules.tars.counting import Counts, Range, Ranges, Seen, add_ranges, zero_counts
from datamodules.tars.hashes import sha256_of_file
from datamodules.tars.shard_table import ABSENT, ShardTable, member_hash
from datamodules.tars.stored import IMAGE, IMAGE_ENDINGS, JSON, Stored, parse_json

_NO_SIZE = (0, 0)


class Fault(NamedTuple):
    """One thing that is wrong in a shard."""

    shard: str
    key: str  # of the sample; "" where it is the shard
    field: str  # a member, an annotation, or "" for the whole
    problem: str

    def __str__(self) -> str:
        place = (self.shard, self.key and f"sample {self.key!r}", self.field)
        return f"{', '.join(filter(None, place))}: {self.problem}"


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
    # of all samples, those with a fault too
    keys: set[str] = field(default_factory=set)
    patients: dict[str, str] = field(default_factory=dict)  # key -> patient, where one is stated
    ranges: Ranges = field(default_factory=dict)  # of the samples in the table


def scan_shard(
    path: Path,
    file: str,
    stored: Mapping[str, Stored],
    deep: bool = False,
    leave_out: Collection[str] = (),
) -> Scan:
    """Reads a whole tar.

    Args:
        path: where it lies now, which for a URL is somewhere in the cache.
        file: its name in the dataset, for messages.
        stored: what its samples are annotated with, and where.
        deep: also decodes the pixels of every image and mask.
        leave_out: keys of samples to keep out of the table, for what is known of them elsewhere.
    """
    return _Scanner(path, file, stored, deep, leave_out).run()


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class _Scanner:
    """Fills a Scan, sample after sample."""

    def __init__(
        self,
        path: Path,
        file: str,
        stored: Mapping[str, Stored],
        deep: bool,
        leave_out: Collection[str],
    ) -> None:
        self.path, self.stored, self.deep, self.leave_out = path, stored, deep, leave_out
        self.keys: list[str] = []
        self.rows: dict[str, list[tuple[int, int, int]]] = {IMAGE: [], JSON: []}
        for one in stored.values():
            self.rows |= {name: [] for name in (one.member, *one.mask_members.values())}
        self.annotated: dict[str, list[int]] = {name: [] for name in stored}
        self.scan = Scan(file, 0, "", ShardTable([], {}, {}), zero_counts(stored))

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
        self.scan.faults.append(Fault(self.scan.file, key, name, " ".join(problem.split())))

    def _sample(self, key: str, members: list[Member]) -> None:
        before = len(self.scan.faults)
        if key in self.scan.keys:
            problem = "the tar has this key before; rename the sample, or keep its members together"
            self._fault(key, "", problem)
        self.scan.keys.add(key)
        found = self._columns(key, members)
        contents = {name: self._read(member) for name, member in found.items()}
        size = self._check_image(key, contents, found)
        record = self._check_json(key, contents)
        seen = self._check_annotations(key, contents, size, record is not None)
        if len(self.scan.faults) == before and key not in self.leave_out:
            self._keep(key, found, contents, seen)
            self.scan.sizes.append(size)
        if isinstance(patient := (record or {}).get("patient"), str | int):
            self.scan.patients[key] = str(patient)

    def _keep(
        self,
        key: str,
        found: Mapping[str, Member],
        contents: Mapping[str, bytes],
        seen: Mapping[str, Seen],
    ) -> None:
        """Makes a row of the table."""
        row = len(self.keys)
        self.keys.append(key)
        for name, rows in self.rows.items():
            member = found.get(name)
            absent = (ABSENT, ABSENT, 0)
            rows.append(
                (member.offset, member.size, member_hash(contents[name])) if member else absent
            )
        for annotation, one in seen.items():
            self.annotated[annotation].append(row)
            one.add_to(self.scan.counts[annotation])
            ranges = {(annotation, name): Range(n, n, n, 1) for name, n in one.numbers.items()}
            add_ranges(self.scan.ranges, ranges)

    def _columns(self, key: str, members: list[Member]) -> dict[str, Member]:
        """Column of the table -> member; a column of an annotation comes before the image's."""
        found: dict[str, Member] = {}
        endings: set[str] = set()
        for member in members:
            ending = member.ending
            is_image = ending in IMAGE_ENDINGS and ending not in self.rows
            column = IMAGE if is_image else ending
            if ending in endings:  # webdataset refuses such a tar
                self._fault(key, column, f"the sample has two members .{ending}; keep one")
            elif column in found:
                problem = f"two images, .{found[column].ending} and .{ending}; keep one"
                self._fault(key, column, problem)
            elif column in self.rows:
                found[column] = member
            else:
                self.scan.unread[ending] += 1
            endings.add(ending)
        return found

    def _read(self, member: Member) -> bytes:
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _check_image(
        self, key: str, contents: Mapping[str, bytes], found: Mapping[str, Member]
    ) -> tuple[int, int]:
        """(H, W); zeros where the image is missing or broken."""
        if IMAGE not in found:
            problem = f"no image; add a member that ends in one of {', '.join(IMAGE_ENDINGS)}"
            self._fault(key, IMAGE, problem)
            return _NO_SIZE
        try:
            if self.deep:
                decode_image(contents[IMAGE], f".{found[IMAGE].ending}")
            return image_size(contents[IMAGE], f".{found[IMAGE].ending}")
        except ConfigError as error:
            self._fault(key, IMAGE, str(error))
            return _NO_SIZE

    def _check_json(self, key: str, contents: Mapping[str, bytes]) -> dict[str, Any] | None:
        """The sample's json; {} where it has none, None where it is broken."""
        try:
            return parse_json(contents[JSON]) if JSON in contents else {}
        except ConfigError as error:
            self._fault(key, JSON, str(error))
            return None

    def _check_annotations(
        self, key: str, contents: Mapping[str, bytes], size: tuple[int, int], json_is_sound: bool
    ) -> dict[str, Seen]:
        """What every annotation that the sample carries says."""
        seen = {}
        for name, one in self.stored.items():
            if one.member == JSON and not json_is_sound:
                continue  # told already
            try:
                value = one.value(contents.get)
                if value is not None:
                    seen[name] = self._see(one, value, contents, size)
            except ConfigError as error:
                self._fault(key, name, str(error))
        return seen

    def _see(
        self, one: Stored, value: Any, contents: Mapping[str, bytes], size: tuple[int, int]
    ) -> Seen:
        """What the value says; ConfigError for what is wrong with it."""
        seen = Seen.of(one.spec, value, self._shown(one, value, contents, size), one.place)
        if size != _NO_SIZE or not one.spec.spatial:
            to_arrays(one.spec, value, {}, size, one.place)
        return seen

    def _shown(
        self, one: Stored, value: Any, contents: Mapping[str, bytes], size: tuple[int, int]
    ) -> list[str]:
        """Classes of a segmentation whose mask is not empty."""
        if one.spec.kind != "segmentation":
            return []
        pngs = {c: member for c, member in one.mask_members.items() if member in contents}
        if self.deep or one.values or "rles" in value:
            masks = one.masks(value, contents.get)
            sizes = {name: mask.shape for name, mask in masks.items()}
            shown = [name for name, mask in masks.items() if name in pngs or mask.any()]
        else:
            sizes = {c: image_size(contents[m], f"member {m!r}") for c, m in pngs.items()}
            shown = list(pngs)
        for name, found in sizes.items():
            if found != size != _NO_SIZE:
                raise ConfigError(
                    f"{one.place}: the mask of {name!r} is {found[1]}x{found[0]}, its image "
                    f"{size[1]}x{size[0]} (width x height); they must be equal"
                )
        return shown
