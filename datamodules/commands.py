"""`ark shards write` and `ark shards inspect`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from ark.types import ConfigError
from datamodules.config import build_source, load_datasets, lock, recorded
from datamodules.index import ShardIndex
from datamodules.inspect import describe
from datamodules.inspect import picture as draw_picture
from datamodules.writing import SHARD_BYTES, write_shards


def shards(args: list[str]) -> None:
    """Runs `ark shards ARGS`."""
    writer, inspector = ArgumentParser(), ArgumentParser()
    writer.add_argument("config", nargs="+", help="YAML files of datasets")
    writer.add_function_arguments(write, skip={"config"})
    inspector.add_function_arguments(inspect, as_positional=True)
    parser = ArgumentParser(prog="ark shards", description="Writes tar shards, or shows them.")
    commands = parser.add_subcommands()
    commands.add_subcommand("write", writer, help="turn datasets' sources into tar shards")
    commands.add_subcommand("inspect", inspector, help="say and show what is inside shards")
    config = parser.parse_args(args)
    options = config[config.subcommand].as_dict()
    if config.subcommand == "write":
        write(**options)
    else:
        inspect(**options)


def write(config: list[str], overwrite: bool = False, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the shards of the datasets that YAML files describe.

    Args:
        config: YAML files of datasets, as in configs/datasets/.
        overwrite: replaces shards that exist; without it they are an error.
        max_shard_bytes: a tar is closed once it holds this many bytes.
    """
    for dataset in load_datasets(config):
        source, folder = build_source(dataset), Path(dataset.shards)
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


def inspect(
    folder: str,
    picture: str | None = None,
    split: str = "train",
    count: int = 12,
    verify: bool = False,
) -> None:
    """Shows what a folder of shards holds.

    Args:
        folder: the folder with index.json.
        picture: PNG to draw samples to; samples.png in the folder where not given.
        split: the split whose samples are drawn.
        count: how many samples are drawn.
        verify: reads every tar and compares its sha256.
    """
    index = ShardIndex.load(folder)
    print(describe(index), end="\n\n")
    if verify:
        index.verify()
        print("every tar has the sha256 that the index states")
    path = Path(picture) if picture else Path(folder) / "samples.png"
    if not path.parent.is_dir():
        raise ConfigError(f"picture {str(path)!r}: no folder {str(path.parent)!r}; create it first")
    print(f"drawn: {draw_picture(index, path, split, count)}")
