"""`ark shards validate`: every shard against the index, every sample against what it says."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ark.types import ConfigError
from datamodules.tars.hashes import sha256_of_bytes
from datamodules.tars.index import INFO_FILE, Shard, ShardIndex
from datamodules.tars.indexing import Indexer, scan_all
from datamodules.tars.scanning import Fault, Scan, counted, scan_shard
from datamodules.tars.shard_table import table_file
from datamodules.tars.storage import LocalFolder, Storage
from datamodules.tars.stored import Stored

_SHOWN = 20  # faults that are printed; a CSV has them all
_ANEW = "index the tars anew"
_AGAIN = "copy it again, or index the tars anew"


def validate_index(index: ShardIndex, workers: int = 0) -> Indexer:
    """Reads and decodes everything that the index names; URLs go through the cache.

    Returns:
        what the tars hold; `faults` says what is wrong with them or with their index.
    """
    indexer = Indexer(index.name, index.stored)
    shards = [(split, shard) for split, part in index.splits.items() for shard in part.shards]
    jobs = [(index.storage, shard, index.stored) for _, shard in shards]
    for (split, shard), scan in zip(shards, scan_all(_scan, jobs, workers), strict=True):
        if isinstance(scan, Fault):
            indexer.faults.append(scan)
            continue
        before = len(indexer.faults)
        indexer.check_across(split, scan)
        table = indexer.add(split, scan)
        sound = len(indexer.faults) == before
        indexer.faults += _against_index(index, shard, scan, table if sound else None)
    indexer.faults += _twice(index)
    if not indexer.faults:
        indexer.faults += _counts(index, indexer)
    return indexer


def _scan(storage: Storage, shard: Shard, stored: Mapping[str, Stored]) -> Scan | Fault:
    """Fetched only now, for the cache may not hold all tars at once."""
    try:
        if isinstance(storage, LocalFolder):  # of whatever size, to tell what is in it too
            path = storage.fetch(shard.file)
        else:
            path = storage.fetch(shard.file, size=shard.bytes, sha256=shard.sha256)
    except (ConfigError, OSError) as error:
        return Fault(shard.file, "", "", str(error))
    return scan_shard(path, shard.file, stored, deep=True)


def _against_index(
    index: ShardIndex, shard: Shard, scan: Scan, table: str | None
) -> Iterator[Fault]:
    """`table`: what the shard's table must be, where its samples are sound."""
    if scan.sha256 and scan.bytes != shard.bytes:
        problem = f"{scan.bytes} bytes, the index states {shard.bytes}; {_AGAIN}"
        yield Fault(shard.file, "", "", problem)
    elif scan.sha256 and scan.sha256 != shard.sha256:
        yield Fault(
            shard.file, "", "", f"its sha256 is not the one that the index states; {_AGAIN}"
        )
    file = table_file(shard.file)
    try:
        stated = index.storage.fetch(file, size=shard.table_bytes).read_bytes()
    except (ConfigError, OSError) as error:
        yield Fault(shard.file, "", file, f"{error}; or index the tars anew")
        return
    if sha256_of_bytes(stated) != shard.table_sha256:
        yield Fault(
            shard.file, "", file, f"its sha256 is not the one that the index states; {_AGAIN}"
        )
    elif table is not None and scan.sha256 == shard.sha256 and stated != table.encode():
        yield Fault(shard.file, "", file, "it does not say what the tar holds; index the tar anew")


def _twice(index: ShardIndex) -> Iterator[Fault]:
    times = Counter(shard.file for part in index.splits.values() for shard in part.shards)
    for file in (file for file, count in times.items() if count > 1):
        yield Fault(file, "", "", f"the index names it {times[file]} times; {_ANEW}")


def _counts(index: ShardIndex, indexer: Indexer) -> Iterator[Fault]:
    """Numbers of the index that are not those of the tars, all of which are sound."""
    for split, part in indexer.index(index.storage).splits.items():
        stated = index.splits[split]
        for shard, said in zip(part.shards, stated.shards, strict=True):
            if shard.samples != said.samples:
                problem = f"{shard.samples} samples, the index states {said.samples}; {_ANEW}"
                yield Fault(shard.file, "", "", problem)
        for annotation, carry in part.annotated.items():
            if not np.array_equal(carry, stated.annotated[annotation]):
                problem = f"split {split}: misstates how many samples of each tar carry it; {_ANEW}"
                yield Fault(INFO_FILE, "", annotation, problem)
        for annotation, classes in part.counts.items():
            for name, counts in classes.items():
                if (then := stated.counts.get(annotation, {}).get(name)) != counts:
                    problem = f"split {split}, {name!r}: states {then}, the tars hold {counts}; "
                    yield Fault(INFO_FILE, "", annotation, problem + _ANEW)


def summary(indexer: Indexer) -> list[str]:
    """Image sizes, ranges of values, and members that nothing reads, as lines."""
    lines = []
    if sizes := indexer.sizes:
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        (height, width), times = sizes.most_common(1)[0]
        often = f"{width}x{height} pixels (width x height)"
        smallest, largest = (f"{size[1]}x{size[0]}" for size in (by_area[0], by_area[-1]))
        lines.append(
            f"image sizes: {counted(len(sizes), 'size')}, {smallest} to {largest}; most often "
            f"{often}: {times} of {sizes.total()} images"
            if len(sizes) > 1
            else f"image sizes: all {times} are {often}"
        )
    for (annotation, name), values in indexer.ranges.items():
        lines.append(
            f"values of {annotation}, {name}: {values.low:.6g} to {values.high:.6g}, mean "
            f"{values.total / values.number:.6g}, of {counted(values.number, 'image')}"
        )
    if indexer.unread:
        endings = ", ".join(f"{count} .{end}" for end, count in indexer.unread.most_common(8))
        lines.append(f"members that no annotation names, never opened: {endings}")
    return lines


def tell_faults(faults: list[Fault]) -> str:
    """The first faults, one a line."""
    lines = [f"  {fault}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"  ... and {len(faults) - _SHOWN} more; `--report FILE.csv` writes all")
    return "\n".join(lines)


def count_faults(faults: list[Fault]) -> str:
    shards = len({fault.shard for fault in faults})
    return f"{counted(len(faults), 'fault')} in {counted(shards, 'file')}"


def write_report(path: Path, faults: Mapping[str, list[Fault]]) -> None:
    """Dataset -> its faults, as a CSV; ConfigError where it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("dataset", *Fault._fields))
            writer.writerows((name, *fault) for name, mine in faults.items() for fault in mine)
    except OSError as error:
        raise ConfigError(
            f"report {str(path)!r}: {error}; name a file in a folder that exists"
        ) from error
