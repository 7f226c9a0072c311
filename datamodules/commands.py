"""`ark shards write | index | validate | inspect`."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ark.types import ConfigError
from datamodules.config import (
    DatasetConfig,
    build_source,
    load_datasets,
    lock,
    recorded,
    stored_annotations,
)
from datamodules.index import ShardIndex
from datamodules.indexing import index_shards
from datamodules.inspect import describe
from datamodules.inspect import picture as draw_picture
from datamodules.sources.base import SPLITS
from datamodules.storage import CacheConfig, LocalFolder, open_storage
from datamodules.validating import summary, tell_faults, validate_index
from datamodules.writing import SHARD_BYTES, write_shards


def shards(args: list[str]) -> None:
    """Runs `ark shards ARGS`."""
    parser = ArgumentParser(prog="ark shards", description="Tar shards: makes, checks, shows them.")
    subcommands = parser.add_subcommands()
    for command, brief in COMMANDS.items():
        one = ArgumentParser()
        if command is inspect:
            one.add_function_arguments(command, as_positional=True)
        else:
            one.add_argument("config", nargs="+", help="YAML files of datasets")
            one.add_function_arguments(command, skip={"config"})
        subcommands.add_subcommand(command.__name__, one, help=brief)
    config = parser.parse_args(args)
    options = config[config.subcommand].as_dict()
    named = {command.__name__: command for command in COMMANDS}
    named[config.subcommand](**options)


def write(config: list[str], overwrite: bool = False, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the shards of the datasets that YAML files describe.

    Args:
        config: YAML files of datasets, as in configs/datasets/.
        overwrite: replaces shards that exist; without it they are an error.
        max_shard_bytes: a tar is closed once it holds this many bytes.
    """
    for dataset in load_datasets(config):
        source, folder = build_source(dataset), _local(dataset)
        for note in source.notes():
            print(f"note: {note}")
        with lock(folder):
            index = write_shards(
                source,
                dataset.name,
                folder,
                config=recorded(dataset),
                max_shard_bytes=max_shard_bytes,
                overwrite=overwrite,
            )
        print(describe(index), end="\n\n")


def index(
    config: list[str],
    skip_bad: bool = False,
    report: str | None = None,
    workers: int = min(8, os.cpu_count() or 1),
) -> None:
    """Indexes tars that exist, in the folder that a dataset's YAML names under `shards`.

    The YAML's `index` says which tars are which split and where in a sample each annotation is.

    Args:
        config: YAML files of datasets.
        skip_bad: leaves samples with a fault out of the index, and says so; otherwise any fault
            stops it and nothing is written.
        report: CSV to write every fault to.
        workers: processes that scan tars.
    """
    for dataset in load_datasets(config):
        folder, stored = _local(dataset), stored_annotations(dataset)
        with lock(folder):
            found = index_shards(
                folder,
                dataset.name,
                stored,
                _files(dataset),
                recorded(dataset) if dataset.source else None,
                keep_going=skip_bad,
                workers=workers,
            )
        if found.faults:
            told = tell_faults(found.faults, Path(report) if report else None)
            if not skip_bad:
                raise ConfigError(
                    f"dataset {dataset.name!r}: nothing was indexed; mend the tars, or leave the "
                    f"samples out with --skip_bad true. {told}"
                )
            print(f"left out of the index: {told}\n")
        print("\n".join([describe(ShardIndex.load(folder)), *summary(found)]), end="\n\n")


def validate(
    config: list[str],
    report: str | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    cache: CacheConfig = CacheConfig(),  # noqa: B008 - frozen
) -> None:
    """Checks everything: every tar against its index, every image, mask, label and box.

    Exits with 2 where anything is wrong.

    Args:
        config: YAML files of datasets; or folders or URLs of shards.
        report: CSV to write every fault to.
        workers: processes that check tars.
        cache: where shards of URLs are kept.
    """
    faulty = []
    for name in config:
        is_yaml = Path(name).suffix in (".yaml", ".yml")
        where = load_datasets([name])[0].shards if is_yaml else name
        stated = ShardIndex.load(where, cache)
        found = validate_index(stated, workers)
        actual = found.index(stated.storage)
        print("\n".join([describe(actual), *summary(found)]))
        if found.faults:
            faulty.append(stated.name)
            print(tell_faults(found.faults, Path(report) if report else None), end="\n\n")
        else:
            print("no fault: tars, tables, index, images and annotations agree", end="\n\n")
    if faulty:
        raise ConfigError(f"faults in {', '.join(faulty)}; see above")


def inspect(folder: str, picture: str | None = None, split: str = "train", count: int = 12) -> None:
    """Shows what a folder of shards holds.

    Args:
        folder: the folder or URL with _info.json.
        picture: PNG to draw samples to; samples.png in the folder where not given.
        split: the split whose samples are drawn.
        count: how many samples are drawn.
    """
    found = ShardIndex.load(folder)
    print(describe(found), end="\n\n")
    home = Path(folder) if isinstance(found.storage, LocalFolder) else Path()
    path = Path(picture) if picture else home / "samples.png"
    if not path.parent.is_dir():
        raise ConfigError(f"picture {str(path)!r}: no folder {str(path.parent)!r}; create it first")
    print(f"drawn: {draw_picture(found, path, split, count)}")


COMMANDS: dict[Callable[..., None], str] = {
    write: "turn datasets' sources into tar shards",
    index: "make the index of tars that exist, also of other tools'",
    validate: "check every tar, image and annotation",
    inspect: "say and show what is inside shards",
}


def _local(dataset: DatasetConfig) -> Path:
    if "://" in dataset.shards:
        raise ConfigError(
            f"dataset {dataset.name!r}: shards is {dataset.shards!r}; write and index a local "
            "folder, copy it there whole, and name the URL then"
        )
    return Path(dataset.shards)


def _files(dataset: DatasetConfig) -> dict[str, list[str]]:
    """Split -> its tars, by the patterns of the YAML."""
    storage = open_storage(dataset.shards)
    there = [name for name in storage.list() if name.endswith(".tar")]
    config: dict[str, Any] = dataset.index or {}
    place = f"dataset {dataset.name!r}: index.splits"
    patterns = config.get("splits") or {split: f"{split}-*.tar" for split in SPLITS}
    if unknown := sorted(set(patterns) - set(SPLITS)):
        raise ConfigError(f"{place}: unknown split {unknown[0]!r}; expected some of {list(SPLITS)}")
    files = {s: [name for name in there if fnmatch(name, p)] for s, p in patterns.items()}
    if empty := [split for split, names in files.items() if not names and config.get("splits")]:
        raise ConfigError(
            f"{place}: no tar in {dataset.shards!r} matches {patterns[empty[0]]!r}; there are "
            f"{len(there)} tars, as {there[:3]}"
        )
    if not any(files.values()):
        raise ConfigError(
            f"{place}: no tar in {dataset.shards!r} is named train-*.tar, val-*.tar or test-*.tar; "
            f'say which are which: {{train: "PATTERN", ...}}. There are {len(there)}: {there[:3]}'
        )
    return {split: names for split, names in files.items() if names}
