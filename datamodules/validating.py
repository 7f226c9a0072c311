"""`ark shards validate`: every shard against the index, every sample against what it says."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.hashes import sha256_of_bytes
from datamodules.index import Shard, ShardIndex
from datamodules.indexing import Indexer, scan_all
from datamodules.scanning import Fault, Scan
from datamodules.shard_table import table_file

_SHOWN = 20  # faults that are printed; a CSV has them all


def validate_index(index: ShardIndex, workers: int = 0) -> Indexer:
    """Reads and decodes everything that the index names; URLs go through the cache.

    Returns:
        what the tars hold; `faults` says what is wrong with them or with their index.
    """
    indexer = Indexer(index.name, index.stored)
    found: list[tuple[str, Shard]] = []
    jobs: list[tuple[Any, ...]] = []
    for split, part in index.splits.items():
        for shard in part.shards:
            try:
                path = index.storage.fetch(shard.file, size=shard.bytes, sha256=shard.sha256)
            except (ConfigError, OSError) as error:
                indexer.faults.append(Fault(shard.file, "", "", str(error)))
                continue
            found.append((split, shard))
            jobs.append((path, shard.file, index.stored, True))
    for (split, shard), scan in zip(found, scan_all(jobs, workers), strict=True):
        table = indexer.add(split, scan)
        indexer.faults += _against_index(index, shard, scan, table)
    indexer.faults += _counts(index, indexer)
    return indexer


def _against_index(index: ShardIndex, shard: Shard, scan: Scan, table: str) -> Iterator[Fault]:
    if scan.sha256 != shard.sha256:
        yield Fault(shard.file, "", "", "its sha256 is not the one that the index states")
    try:
        path = index.storage.fetch(table_file(shard.file), size=shard.table_bytes)
        stated = path.read_bytes()
    except (ConfigError, OSError) as error:
        yield Fault(shard.file, "", "table", str(error))
        return
    if sha256_of_bytes(stated) != shard.table_sha256:
        yield Fault(shard.file, "", "table", "its sha256 is not the one that the index states")
    if stated != table.encode() and not scan.faults:
        yield Fault(shard.file, "", "table", "it does not say what the tar holds; index it anew")


def _counts(index: ShardIndex, indexer: Indexer) -> Iterator[Fault]:
    """Numbers of the index that are not those of the tars; only where all tars are sound."""
    if indexer.faults:
        return
    for split, part in indexer.index(index.storage).splits.items():
        stated_part = index.splits[split]
        for shard, stated_shard in zip(part.shards, stated_part.shards, strict=True):
            if shard.samples != stated_shard.samples:
                problem = f"the index says {stated_shard.samples} samples, it has {shard.samples}"
                yield Fault(shard.file, "", "", problem)
        for annotation, carry in part.annotated.items():
            if not np.array_equal(carry, stated_part.annotated[annotation]):
                problem = "the index misstates how many samples of each shard carry it"
                yield Fault(f"{split} split", "", annotation, problem)
        for annotation, classes in part.counts.items():
            for name, counts in classes.items():
                stated = index.splits[split].counts.get(annotation, {}).get(name)
                if stated != counts:
                    problem = f"{name}: the index counts {stated}, the tars hold {counts}"
                    yield Fault(f"{split} split", "", annotation, problem)


def summary(indexer: Indexer) -> list[str]:
    """Image sizes and members that nothing reads, as lines."""
    lines = []
    if sizes := indexer.sizes:
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        smallest, largest = by_area[0], by_area[-1]
        (height, width), times = sizes.most_common(1)[0]
        lines.append(
            f"images: {smallest[1]}x{smallest[0]} to {largest[1]}x{largest[0]} pixels (width x "
            f"height), {len(sizes)} sizes; most often {width}x{height} ({times} of {sizes.total()})"
        )
    if indexer.unread:
        endings = ", ".join(f"{count} .{end}" for end, count in indexer.unread.most_common(8))
        lines.append(f"members that no annotation names, never opened: {endings}")
    return lines


def tell_faults(faults: list[Fault], report: Path | None) -> str:
    """The first faults as text, and all of them in a CSV where `report` names one."""
    kinds = Counter(fault.shard for fault in faults)
    lines = [f"{len(faults)} faults in {len(kinds)} shards:"]
    for shard, key, name, problem in faults[:_SHOWN]:
        lines.append("  " + ": ".join(part for part in (shard, key, name, problem) if part))
    if len(faults) > _SHOWN:
        lines.append(f"  ... and {len(faults) - _SHOWN} more; --report FILE.csv writes them all")
    if report is not None:
        with report.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Fault._fields)
            writer.writerows(faults)
        lines.append(f"all of them are in {report}")
    return "\n".join(lines)
