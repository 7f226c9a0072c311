"""From a Source to tars and their index: the same input gives the same bytes, all or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from webdataset import TarWriter

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, check_name
from datamodules.imaging.images import image_format
from datamodules.sources.base import Source, SourceSample
from datamodules.tars.index import INFO_FILE, ShardIndex
from datamodules.tars.indexing import Indexer, index_shards
from datamodules.tars.storage import LocalFolder
from datamodules.tars.stored import JSON, Stored, mask_member

SHARD_BYTES = 2**28
_KEY = re.compile(r"\w[\w-]*")


def write_shards(
    source: Source,
    name: str,
    folder: str | Path,
    *,
    config: dict[str, Any] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> ShardIndex:
    """Writes all splits of `source` to `folder` as tars and their index.

    `folder` appears when everything is written; a killed write leaves only a hidden sibling.

    Args:
        name: the dataset's name, kept in the index.
        config: the source's config as kept in the index, to notice when the YAML changes.
        max_shard_bytes: a tar is closed once its members reach this many bytes.
        progress: shows a bar where the output is a terminal.

    Raises:
        ConfigError: `folder` holds shards and not `overwrite`; it holds anything else; or whatever
            is wrong with the source.
    """
    folder = Path(folder)
    _check_free(folder, overwrite)
    specs = {check_name(a, f"{name}: annotation"): s for a, s in source.annotations().items()}
    with _replaced(folder) as temporary:
        writer = _DatasetWriter(temporary, specs, max_shard_bytes)
        total = sum(source.splits().values())
        with tqdm(total=total, desc=name, unit="img", disable=None if progress else True) as bar:
            for split in source.splits():
                writer.split(split, _counted(source.samples(split), bar))
        indexer = writer.finish(name, config)
        _check_present(name, indexer.index(LocalFolder(temporary)))
    return ShardIndex.load(folder)


class _DatasetWriter:
    """Writes the splits of one dataset and checks what must hold across them."""

    def __init__(self, folder: Path, specs: dict[str, AnnotationSpec], max_bytes: int) -> None:
        self.folder, self.specs, self.max_bytes = folder, specs, max_bytes
        self.files: dict[str, list[str]] = {}
        self._split_of_key: dict[str, str] = {}
        self._split_of_patient: dict[str, str] = {}

    def split(self, split: str, samples: Iterator[SourceSample]) -> None:
        """Writes the tars of one split."""
        self.files[split], size = [], 0
        pending: list[SourceSample] = []
        for sample in samples:
            self._check(sample, split)
            pending.append(sample)
            size += _sample_bytes(sample)
            if size >= self.max_bytes:
                self._shard(split, pending)
                pending, size = [], 0
        if pending:
            self._shard(split, pending)
        elif not self.files[split]:
            raise ConfigError(f"split {split!r} is empty; give it samples or leave it out")

    def finish(self, name: str, config: dict[str, Any] | None) -> Indexer:
        """Indexes the tars; ConfigError where a sample in them is not as it must be."""
        stored = {annotation: Stored.ours(annotation, s) for annotation, s in self.specs.items()}
        indexer = index_shards(self.folder, name, stored, self.files, config)
        if indexer.faults:
            _, key, field, problem = indexer.faults[0]
            raise ConfigError(f"sample {key!r}, {field!r}: {problem}")
        return indexer

    def _shard(self, split: str, samples: list[SourceSample]) -> None:
        path = self.folder / f"{split}-{len(self.files[split]):06d}.tar"
        self.files[split].append(path.name)
        with (
            path.open("wb") as stream,
            # PAX keeps names of any length; a fixed mtime makes the bytes a function of the samples
            TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT") as tar,
        ):
            for sample in samples:
                tar.write({"__key__": sample.key, **_members(sample)})

    def _check(self, sample: SourceSample, split: str) -> None:
        if not _KEY.fullmatch(sample.key):
            raise ConfigError(
                f"sample key {sample.key!r}: expected letters, digits, '_' and '-', and no dot, "
                "since a WebDataset key ends at its first dot"
            )
        if sample.key in self._split_of_key:
            raise ConfigError(
                f"two samples have the key {sample.key!r} (in {self._split_of_key[sample.key]} and "
                f"in {split}); rename one of the images"
            )
        self._split_of_key[sample.key] = split
        if sample.patient is not None:
            first = self._split_of_patient.setdefault(sample.patient, split)
            if first != split:
                raise ConfigError(f"patient {sample.patient!r} is in {first} and in {split}")
        if unknown := sorted((set(sample.annotations) | set(sample.masks)) - set(self.specs)):
            raise ConfigError(f"sample {sample.key!r} carries the undeclared {unknown[0]!r}")


def _members(sample: SourceSample) -> dict[str, bytes]:
    record = {
        "height": sample.size[0],
        "width": sample.size[1],
        "patient": sample.patient,
        "annotations": dict(sample.annotations),
    }
    masks = {
        mask_member(annotation, name): png
        for annotation, pngs in sample.masks.items()
        for name, png in pngs.items()
    }
    text = json.dumps(record, ensure_ascii=False).encode()
    return {image_format(sample.image, sample.key): sample.image, JSON: text, **masks}


def _sample_bytes(sample: SourceSample) -> int:
    masks = (png for pngs in sample.masks.values() for png in pngs.values())
    return len(sample.image) + sum(map(len, masks))


def _counted(samples: Iterator[SourceSample], bar: tqdm) -> Iterator[SourceSample]:
    for sample in samples:
        yield sample
        bar.update()


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / INFO_FILE).is_file():
        raise ConfigError(
            f"{str(folder)!r} holds files that are no shards and would be lost; set `shards` to a "
            "folder of its own"
        )
    if not overwrite:
        raise ConfigError(f"{str(folder)!r} exists; add `--overwrite true` to write it again")


def _check_present(name: str, index: ShardIndex) -> None:
    """A mistyped path or column leaves an annotation empty everywhere; that is never meant."""
    for annotation in index.stored:
        classes = [c for split in index.splits.values() for c in split.counts[annotation].values()]
        if not any(count["present"] or count.get("uncertain") for count in classes):
            raise ConfigError(
                f"dataset {name!r}: no sample of any split shows a class of annotation "
                f"{annotation!r}; check its paths, columns and `where` in the source"
            )


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A fresh sibling folder to write to, which takes `folder`'s place on success."""
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
