"""The `_info.json` of a dataset: its splits and their shards, in the form that timm reads too.

Per split it has `num_samples`, `filenames` and `shard_lengths` (timm's names), and beside them the
size and sha256 of every tar and of its table, how many samples of each shard carry which
annotation, and class counts. About 300 bytes a shard: the samples themselves are listed in each
shard's own table (`datamodules.tars.shard_table`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec
from datamodules.tars.shard_table import HOW
from datamodules.tars.storage import CacheConfig, LocalFolder, Storage, check_name, open_storage
from datamodules.tars.stored import Stored

FORMAT = 2
INFO_FILE = "_info.json"
_PLAIN = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar and its table."""

    file: str
    samples: int
    bytes: int
    sha256: str
    table_bytes: int
    table_sha256: str

    def check(self) -> None:
        """An index may be a stranger's; ValueError where it is not what it must be."""
        if not _PLAIN.fullmatch(self.file):  # most are, and there may be a million
            check_name(self.file)
        numbers = (self.samples, self.bytes, self.table_bytes)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError(f"shard {self.file!r} has {numbers} samples and bytes")
        for digest in (self.sha256, self.table_sha256):
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise ValueError(f"shard {self.file!r} has the sha256 {digest!r}")


# the columns of `Shard` in _info.json; the first two are timm's names
_COLUMNS = dict(
    zip(
        (field.name for field in fields(Shard)),
        (
            "filenames",
            "shard_lengths",
            "shard_bytes",
            "shard_sha256",
            "table_bytes",
            "table_sha256",
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class SplitIndex:
    """The shards of one split."""

    shards: tuple[Shard, ...]
    annotated: dict[str, np.ndarray]  # annotation -> (S,) int64: samples that carry it, by shard
    counts: dict[str, dict[str, dict[str, int]]]
    # annotation -> class -> {"known": samples, "present": samples, in detection "boxes", and where
    # there are some, "uncertain": samples}

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @classmethod
    def parse(cls, content: dict[str, Any], stored: dict[str, Stored]) -> SplitIndex:
        columns = [content[column] for column in _COLUMNS.values()]
        shards = tuple(Shard(*row) for row in zip(*columns, strict=True))
        for shard in shards:
            shard.check()
        samples = np.array([shard.samples for shard in shards], np.int64)
        if content["num_samples"] != samples.sum():
            raise ValueError(f"num_samples is {content['num_samples']}, the shards' sum another")
        annotated = {a: np.array(content["annotated"][a], np.int64) for a in stored}
        for name, carry in annotated.items():
            if carry.shape != samples.shape or np.any((carry < 0) | (carry > samples)):
                raise ValueError(f"`annotated` of {name!r} is not a number of samples a shard")
        for name, one in stored.items():
            for what in one.spec.classes:
                if not all(type(n) is int for n in content["counts"][name][what].values()):
                    raise ValueError(f"`counts` of {name!r}, {what!r} are no whole numbers")
        return cls(shards, annotated, content["counts"])

    def as_config(self, name: str) -> dict[str, Any]:
        columns = {
            column: [getattr(shard, field) for shard in self.shards]
            for field, column in _COLUMNS.items()
        }
        annotated = {a: counts.tolist() for a, counts in self.annotated.items()}
        head = {"name": name, "num_samples": self.num_samples}
        return {**head, **columns, "annotated": annotated, "counts": self.counts}


@dataclass(frozen=True)
class ShardIndex:
    """What a dataset's shards hold; opens no tar."""

    storage: Storage
    name: str
    stored: dict[str, Stored]  # annotation -> its meaning and where it is stored
    source: dict[str, Any] | None  # the config it was written from, without locations
    splits: dict[str, SplitIndex]

    @classmethod
    def load(cls, location: str | Path, cache: CacheConfig = CacheConfig()) -> ShardIndex:  # noqa: B008 - frozen
        """Reads `location`/_info.json.

        Raises:
            ConfigError: no index there, or one that is broken or of another format.
        """
        storage = open_storage(location, cache)
        path = f"{storage.where}/{INFO_FILE}"
        try:
            text = storage.fetch(INFO_FILE).read_bytes()
        except (ConfigError, OSError) as error:
            raise ConfigError(
                f"no shards in {str(location)!r} ({INFO_FILE} is missing: {error}); write them "
                "with `ark shards write CONFIG`, or index tars that are there with "
                "`ark shards index CONFIG`, CONFIG being the dataset's YAML"
            ) from error
        try:
            return cls.parse(json.loads(text), storage)
        except ConfigError:
            raise
        except (
            *(ValueError, KeyError, TypeError, AttributeError),
            *(OverflowError, RecursionError),
        ) as error:
            raise ConfigError(f"{path}: broken ({type(error).__name__}: {error}); {HOW}") from error

    @classmethod
    def parse(cls, content: dict[str, Any], storage: Storage) -> ShardIndex:
        path = f"{storage.where}/{INFO_FILE}"
        if content.get("format") != FORMAT:
            raise ConfigError(
                f"{path}: format is {content.get('format')!r}, expected {FORMAT}; {HOW}"
            )
        stored = {n: Stored.checked(n, c, path) for n, c in content["annotations"].items()}
        splits = {n: SplitIndex.parse(split, stored) for n, split in content["splits"].items()}
        return cls(storage, str(content["name"]), stored, content["source"], splits)

    def as_json(self) -> str:
        content = {
            "format": FORMAT,
            "name": self.name,
            "annotations": {name: stored.as_config() for name, stored in self.stored.items()},
            "source": self.source,
            "splits": {name: split.as_config(name) for name, split in self.splits.items()},
        }
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)

    @property
    def annotations(self) -> dict[str, AnnotationSpec]:
        return {name: stored.spec for name, stored in self.stored.items()}

    def num_samples(self, split: str) -> int:
        return self.split(split).num_samples

    def annotated(self, split: str, annotation: str) -> np.ndarray:
        """Samples of each shard of `split` that carry `annotation`, (S,) int64."""
        self.annotation(annotation)
        return self.split(split).annotated[annotation]

    def annotation(self, name: str) -> Stored:
        if name not in self.stored:
            raise ConfigError(
                f"dataset {self.name!r} has no annotation {name!r}; it has {list(self.stored)}"
            )
        return self.stored[name]

    def split(self, name: str) -> SplitIndex:
        if name not in self.splits:
            raise ConfigError(
                f"dataset {self.name!r} has no split {name!r}; it has {list(self.splits)}"
            )
        return self.splits[name]

    def check_files(self) -> None:
        """Compares the size of every tar with the index, before a run begins. Not for URLs.

        Raises:
            ConfigError: names the first tar that is missing or of another size.
        """
        if isinstance(self.storage, LocalFolder):
            for split in self.splits.values():
                for shard in split.shards:
                    self.storage.fetch(shard.file, size=shard.bytes)
