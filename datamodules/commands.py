"""`ark shards write | index | validate | inspect`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser

from ark.types import ConfigError
from datamodules.config import (
    DatasetConfig,
    build_source,
    load_datasets,
    lock,
    prepare,
    recorded,
    stored_annotations,
)
from datamodules.inspect import describe
from datamodules.inspect import picture as draw_picture
from datamodules.tars.index import INFO_FILE, ShardIndex
from datamodules.tars.indexing import find_tars, index_shards
from datamodules.tars.scanning import Fault, counted
from datamodules.tars.storage import CacheConfig, LocalFolder
from datamodules.tars.validating import (
    count_faults,
    summary,
    tell_faults,
    validate_index,
    write_report,
)
from datamodules.tars.writing import SHARD_BYTES, write_shards


def shards(args: list[str]) -> None:
    """Runs `ark shards ARGS`."""
    parser = ArgumentParser(prog="ark shards", description="Tar shards: makes, checks, shows them.")
    subcommands = parser.add_subcommands()
    for command, brief in COMMANDS.items():
        one = ArgumentParser()
        if command is inspect:
            one.add_function_arguments(command, as_positional=True)
        else:
            places = ", or folders or URLs of shards" if command is validate else ""
            one.add_argument("config", nargs="+", help=f"YAML files of datasets{places}")
            one.add_function_arguments(command, skip={"config"})
        subcommands.add_subcommand(command.__name__, one, help=brief)
    config = parser.parse_args(args)
    options = parser.instantiate_classes(config)[config.subcommand].as_dict()
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
    faults = _Faults(report)
    for dataset in load_datasets(config):
        folder, stored = _local(dataset), stored_annotations(dataset)
        place = f"dataset {dataset.name!r}: index"
        files, unused = find_tars(LocalFolder(folder), dataset.index or {}, place)
        if unused:
            print(f"note: {counted(len(unused), 'tar')} of no split, not indexed: {unused[:3]}")
        source = recorded(dataset) if dataset.source else None
        with lock(folder):
            found = index_shards(folder, dataset.name, stored, files, source, skip_bad, workers)
        faults.add(dataset.name, found.faults)
        if found.faults and not skip_bad:
            raise ConfigError(
                f"dataset {dataset.name!r}: {count_faults(found.faults)}, so nothing was indexed; "
                "mend them, or leave these samples out with `--skip_bad true`:\n"
                f"{tell_faults(found.faults)}"
            )
        if found.faults:
            print(f"left out of the index, for {count_faults(found.faults)}:")
            print(tell_faults(found.faults), end="\n\n")
        print("\n".join([describe(ShardIndex.load(folder)), "", *summary(found)]), end="\n\n")


def validate(
    config: list[str],
    report: str | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    cache: CacheConfig = CacheConfig(),  # noqa: B008 - frozen
) -> None:
    """Checks everything: every tar against its index, every image, mask, label and box.

    Exits with 2 where anything is wrong.

    Args:
        config: YAML files of datasets, or folders or URLs of shards.
        report: CSV to write every fault to.
        workers: processes that check tars.
        cache: where shards of URLs are kept.
    """
    faults = _Faults(report)
    for name in config:
        stated = _stated(name, cache)
        found = validate_index(stated, workers)
        faults.add(name, found.faults)
        actual = found.index(stated.storage)
        print("\n".join([describe(actual), "", *summary(found)]), end="\n\n")
        if found.faults:
            print(f"{count_faults(found.faults)}:\n{tell_faults(found.faults)}", end="\n\n")
        else:
            print("no fault: tars, tables, index, images and annotations agree", end="\n\n")
    if faulty := [name for name, some in faults.by_name.items() if some]:
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


def _stated(name: str, cache: CacheConfig) -> ShardIndex:
    """The index of a YAML's shards, which must be what the YAML says; or of a folder or URL."""
    if Path(name).suffix not in (".yaml", ".yml"):
        return ShardIndex.load(name, cache)
    dataset = load_datasets([name])[0]
    if "://" not in dataset.shards and not (Path(dataset.shards) / INFO_FILE).is_file():
        return ShardIndex.load(dataset.shards, cache)  # refuses; `prepare` may write phantoms
    return prepare(dataset, cache)


class _Faults:
    """The faults of all datasets so far, in a CSV too where one is wanted."""

    def __init__(self, report: str | None) -> None:
        self.report = Path(report) if report else None
        self.by_name: dict[str, list[Fault]] = {}
        self._write()  # a path that cannot be written is told before the work

    def add(self, name: str, faults: list[Fault]) -> None:
        self.by_name[name] = faults
        self._write()

    def _write(self) -> None:
        if self.report is not None:
            write_report(self.report, self.by_name)
