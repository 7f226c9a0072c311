"""The index.json of a dataset: what its tars hold and where in them each member begins."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec

FORMAT = 1
INDEX_FILE = "index.json"
IMAGE, JSON = "image", "json"  # columns of the member table beside the masks'
REWRITE = "copy the folder again, or write it with `ark shards write --overwrite true CONFIG`"


def mask_member(annotation: str, name: str) -> str:
    """The end of a mask's member name: `organs.heart.png`. Class names may hold any character."""
    return f"{annotation}.{quote(name, safe='').replace('.', '%2E')}.png"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitIndex:
    """Where the n samples of one split are; samples are numbered 0..n-1 in stored order."""

    shards: tuple[Shard, ...]
    keys: np.ndarray  # (n,) str
    shard: np.ndarray  # (n,) int64: index into `shards`
    members: dict[str, np.ndarray]  # column -> (2, n) int64: offset and size; size -1 = absent
    annotated: dict[str, np.ndarray]  # annotation -> (m,) int64: numbers of samples that carry it
    counts: dict[str, dict[str, dict[str, int]]]
    # annotation -> class -> {"known": samples, "present": samples, and in detection "boxes"}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> SplitIndex:
        table = content["samples"]
        return cls(
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            keys=np.array(table["key"], dtype=np.str_),
            shard=np.array(table["shard"], np.int64),
            members={name: np.array(rows, np.int64) for name, rows in table["members"].items()},
            annotated={a: np.array(rows, np.int64) for a, rows in table["annotated"].items()},
            counts=content["counts"],
        )


@dataclass(frozen=True)
class ShardIndex:
    """The index.json of a dataset's folder."""

    folder: Path
    name: str
    annotations: dict[str, AnnotationSpec]
    source: dict[str, Any] | None  # the config it was written from, without locations
    splits: dict[str, SplitIndex]

    @classmethod
    def load(cls, folder: str | Path) -> ShardIndex:
        """Reads `folder`/index.json; opens no tar.

        Raises:
            ConfigError: no index there, another format, or a tar that is missing or was changed.
        """
        folder = Path(folder)
        path = folder / INDEX_FILE
        if not path.is_file():
            raise ConfigError(
                f"no shards in {str(folder)!r} ({INDEX_FILE} is missing); write them with "
                "`ark shards write CONFIG`, CONFIG being the dataset's YAML"
            )
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: broken ({error}); {REWRITE}") from error
        if content.get("format") != FORMAT:
            raise ConfigError(
                f"{path}: format is {content.get('format')!r}, expected {FORMAT}; {REWRITE}"
            )
        specs = {
            name: AnnotationSpec(a["kind"], tuple(a["classes"]))
            for name, a in content["annotations"].items()
        }
        splits = {name: SplitIndex.parse(split) for name, split in content["splits"].items()}
        index = cls(folder, content["name"], specs, content["source"], splits)
        index._check_sizes()
        return index

    def num_samples(self, split: str) -> int:
        return len(self.split(split).keys)

    def classes(self, annotation: str) -> tuple[str, ...]:
        return self.annotation(annotation).classes

    def annotated(self, split: str, annotation: str) -> np.ndarray:
        """Numbers of the samples of `split` that carry `annotation`, (m,) int64, rising."""
        self.annotation(annotation)
        return self.split(split).annotated[annotation]

    def annotation(self, name: str) -> AnnotationSpec:
        if name not in self.annotations:
            raise ConfigError(
                f"dataset {self.name!r} has no annotation {name!r}; it has {list(self.annotations)}"
            )
        return self.annotations[name]

    def split(self, name: str) -> SplitIndex:
        if name not in self.splits:
            raise ConfigError(
                f"dataset {self.name!r} has no split {name!r}; it has {list(self.splits)}"
            )
        return self.splits[name]

    def verify(self) -> None:
        """Reads every tar and compares its hash; ConfigError names the first that differs."""
        for split in self.splits.values():
            for shard in split.shards:
                if sha256(self.folder / shard.file) != shard.sha256:
                    raise ConfigError(f"{self.folder / shard.file}: its sha256 changed; {REWRITE}")

    def _check_sizes(self) -> None:
        for split in self.splits.values():
            for shard in split.shards:
                path = self.folder / shard.file
                found = path.stat().st_size if path.is_file() else None
                if found != shard.bytes:
                    raise ConfigError(
                        f"{path}: {'missing' if found is None else f'{found} bytes'}, the index "
                        f"says {shard.bytes} bytes; {REWRITE}"
                    )
