"""Reading one sample of a dataset's shards, in any order.

A dataset's folder has plain WebDataset tars, a table beside each, and one `_info.json`. A sample's
members in the tar, as `ark shards write` makes them (`stored.py` says what else is read):

    <key>.jpg, .png, ...              the image, as its source had it
    <key>.json                        height, width, patient and the annotations in class NAMES
    <key>.<annotation>.<class>.png    a mask, where the class is known and not empty

The table knows the offset of every member, so one sample costs one `pread` a member. The tars alone
say all that the index says: any WebDataset reader can use them. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import Annotation
from datamodules.arrays import to_arrays
from datamodules.imaging.images import Window, decode_image, image_size
from datamodules.tars.index import ShardIndex
from datamodules.tars.shard_table import ABSENT, ShardTable, member_hash, table_file
from datamodules.tars.storage import RemoteFolder, open_file
from datamodules.tars.stored import IMAGE, JSON, parse_json

MOST_OPEN = 512  # shards that a process holds open: a descriptor and a table each
CHECK = "`ark shards validate CONFIG` lists every fault"


class BadSample(ConfigError):
    """A sample that cannot be used. `reason` is the one word under which the ledger counts it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Address(NamedTuple):
    """Where a sample is stored."""

    split: str
    shard: int  # of the split
    row: int  # of the shard's table


class Sample(NamedTuple):
    """One stored sample with one of its annotations; its image is not decoded yet."""

    origin: StoredSample
    data: bytes  # the image as it is stored
    size: tuple[int, int]  # (H, W) of the image; (0, 0) where the annotation needs none
    annotation: Annotation  # in pixels of the image

    @property
    def key(self) -> str:
        return self.origin.key


class ShardReader:
    """Random access to the samples of a `ShardIndex`. Can be pickled into worker processes.

    Args:
        window: how pixels of more than 8 bits become 8; see `datamodules.imaging.images`.
    """

    def __init__(self, index: ShardIndex, window: Window = "auto") -> None:
        self.index, self.window = index, window
        self.remote = isinstance(index.storage, RemoteFolder)

    def read(self, at: Address, annotation: str) -> Sample:
        """Reads a sample with its `annotation`: the image, the annotation's member and its masks.

        Raises:
            BadSample: anything of this sample or its shard is damaged; says where.
        """
        return self.load(self.open(at), annotation)

    def load(self, found: StoredSample, annotation: str) -> Sample:
        """As `read`, for a sample that was opened."""
        stored = self.index.annotation(annotation)
        data, reason = self._image(found), "annotation"
        try:
            value = stored.value(found.member)
            if value is None:
                raise ConfigError(f"no annotation {annotation!r}; {CHECK}")
            masks = stored.masks(value, found.member)
            reason = "image"
            size = image_size(data, "image") if stored.spec.spatial else (0, 0)
            reason = "annotation"
            arrays = to_arrays(stored.spec, value, masks, size, stored.place)
        except BadSample:
            raise
        except ConfigError as error:
            raise BadSample(f"{found.where}: {error}", reason) from error
        return Sample(found, data, size, arrays)

    def decode(self, sample: Sample, min_side: int = 0) -> np.ndarray:
        """The image, (h, w, C) uint8; C = 1 gray, 3 RGB.

        Args:
            min_side: pixels; a larger image may be decoded at a smaller size, both sides no
                shorter than this. 0: as stored.

        Raises:
            BadSample: the image cannot be decoded.
        """
        return self._decode(sample.origin, sample.data, min_side)

    def patient(self, sample: Sample) -> str:
        """Whom the image shows, as its json says; the sample's key where it does not.

        Raises:
            BadSample: the json is damaged.
        """
        try:
            stated = self._record(sample.origin).get("patient")
        except BadSample:
            raise
        except ConfigError as error:
            raise BadSample(str(error), "annotation") from error
        known = isinstance(stated, str | int) and stated != ""
        return str(stated) if known else sample.key

    def image(self, at: Address) -> np.ndarray:
        """The stored image alone, (H, W, C) uint8."""
        sample = self.open(at)
        return self._decode(sample, self._image(sample), 0)

    def record(self, at: Address) -> dict[str, Any]:
        """The sample's json: height, width, patient, annotations in class names; {} if none."""
        return self._record(self.open(at))

    def _record(self, sample: StoredSample) -> dict[str, Any]:
        data = sample.member(JSON)
        return {} if data is None else parse_json(data, sample.where)

    def fetch(self, split: str, number: int) -> None:
        """Makes a shard of a URL be in the cache."""
        shard, storage = self.index.split(split).shards[number], self.index.storage
        table = table_file(shard.file)
        storage.fetch(table, size=shard.table_bytes, sha256=shard.table_sha256)
        storage.fetch(shard.file, size=shard.bytes, sha256=shard.sha256)

    def open(self, at: Address) -> StoredSample:
        """A sample to read members of."""
        return StoredSample(self.shard(at.split, at.shard), at.row)

    def _image(self, sample: StoredSample) -> bytes:
        data = sample.member(IMAGE)
        if data is None:
            raise BadSample(f"{sample.where} has no image; {CHECK}", "image")
        return data

    def _decode(self, found: StoredSample, data: bytes, min_side: int) -> np.ndarray:
        try:
            return decode_image(data, "image", min_side=min_side, window=self.window)
        except ConfigError as error:
            raise BadSample(f"{found.where}: {error}", "image") from error

    def shard(self, split: str, number: int) -> OpenShard:
        """A shard with its table, opened unless it is open.

        Raises:
            BadSample: the tar or its table is missing or is not the one that the index states.
        """
        shard = self.index.split(split).shards[number]
        name = (self.index.storage.where, shard.file, shard.sha256, shard.table_sha256)
        found = _OPEN.get(name)
        if found is None:
            found = self._open_shard(split, number)
            _OPEN.put(name, found)
        return found

    def _open_shard(self, split: str, number: int) -> OpenShard:
        shard, storage = self.index.split(split).shards[number], self.index.storage
        where = f"{storage.where}/{shard.file}"
        name = table_file(shard.file)
        try:
            path = storage.fetch(name, size=shard.table_bytes, sha256=shard.table_sha256)
            text = path.read_bytes()
            if hashlib.sha256(text).hexdigest() != shard.table_sha256:
                raise ConfigError(f"{path} is not the one that the index states; {CHECK}")
            table = ShardTable.parse(text, shard.bytes, str(path))
            descriptor = open_file(storage, shard.file, size=shard.bytes, sha256=shard.sha256)
        except (ConfigError, OSError) as error:
            said = str(error) if str(error).startswith(where) else f"{where}: {error}"
            raise BadSample(said, "shard") from error
        return OpenShard(where, descriptor, table)


class OpenShard:
    """A tar that is open for reading, with its table."""

    def __init__(self, where: str, descriptor: int, table: ShardTable) -> None:
        self.where, self.descriptor, self.table = where, descriptor, table

    def __del__(self) -> None:
        os.close(self.descriptor)


class StoredSample:
    """One sample's members, read when they are asked for."""

    def __init__(self, shard: OpenShard, row: int) -> None:
        self.shard, self.row = shard, row

    @property
    def key(self) -> str:
        return self.shard.table.keys[self.row]

    @property
    def where(self) -> str:
        """For messages; not made before one is needed."""
        return f"{self.shard.where}: sample {self.key!r}"

    def member(self, name: str) -> bytes | None:
        """The content of a member; None where the sample lacks it.

        Raises:
            BadSample: the tar does not hold there what the table says.
        """
        rows = self.shard.table.members.get(name)
        if rows is None:
            return None
        offset, size, stated = rows[:, self.row].tolist()
        if size == ABSENT:
            return None
        try:
            data = os.pread(self.shard.descriptor, size, offset)  # moves no file position
        except OSError as error:
            raise BadSample(f"{self.where}, member {name!r}: {error}", "shard") from error
        if len(data) != size:
            raise BadSample(
                f"{self.where}, member {name!r}: the tar ends early, {len(data)} of {size} bytes; "
                "copy it again",
                "shard",
            )
        if member_hash(data) != stated:
            raise BadSample(
                f"{self.where}, member {name!r}: the content is damaged (its xxh3 differs from the "
                f"table's); copy the tar again, or index it anew; {CHECK}",
                "checksum",
            )
        return data


class _OpenShards:
    """The shards that this process reads from, of all datasets; the least recently used go."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._shards: OrderedDict[tuple[str, ...], OpenShard] = OrderedDict()

    def get(self, name: tuple[str, ...]) -> OpenShard | None:
        if name in self._shards:
            self._shards.move_to_end(name)
        return self._shards.get(name)

    def put(self, name: tuple[str, ...], shard: OpenShard) -> None:
        self._shards[name] = shard
        if len(self._shards) > self.most:
            self._shards.popitem(last=False)


# One for all readers of a process: descriptors are the process's, and a fork may share them.
_OPEN = _OpenShards(MOST_OPEN)
