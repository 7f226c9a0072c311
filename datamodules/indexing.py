"""From tars to their index: a table beside each tar and one _info.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules.hashes import sha256_of_bytes
from datamodules.index import INFO_FILE, Shard, ShardIndex, SplitIndex
from datamodules.scanning import Counts, Fault, Scan, add_counts, scan_shard, zero_counts
from datamodules.shard_table import table_file
from datamodules.storage import LocalFolder, Storage
from datamodules.stored import Stored


@dataclass
class _Split:
    counts: Counts
    shards: list[Shard] = field(default_factory=list)
    annotated: dict[str, list[int]] = field(default_factory=dict)


class Indexer:
    """Collects the scans of a dataset's tars and checks what must hold across them.

    Args:
        name: of the dataset.
        stored: what its samples are annotated with, and where.
    """

    def __init__(self, name: str, stored: Mapping[str, Stored]) -> None:
        self.name, self.stored = name, dict(stored)
        self.faults: list[Fault] = []
        self.unread: Counter[str] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self._splits: dict[str, _Split] = {}
        self._shard_of_key: dict[str, str] = {}
        self._split_of_patient: dict[str, str] = {}

    def add(self, split: str, scan: Scan) -> str:
        """Takes in the scan of a tar; returns the text of its table."""
        self._check_across(scan, split)
        self.faults += scan.faults
        self.unread += scan.unread
        self.sizes.update(scan.sizes)
        if split not in self._splits:
            empty: dict[str, list[int]] = {name: [] for name in self.stored}
            self._splits[split] = _Split(zero_counts(self.stored), annotated=empty)
        mine, table = self._splits[split], scan.table.as_json()
        encoded = table.encode()
        sizes = (len(scan.table.keys), scan.bytes, scan.sha256, len(encoded))
        mine.shards.append(Shard(scan.file, *sizes, sha256_of_bytes(encoded)))
        add_counts(mine.counts, scan.counts)
        for annotation, rows in scan.table.annotated.items():
            mine.annotated[annotation].append(len(rows))
        return table

    def index(self, storage: Storage, source: dict[str, Any] | None = None) -> ShardIndex:
        """What was found so far."""
        splits = {
            name: SplitIndex(
                tuple(split.shards),
                {a: np.array(counts, np.int64) for a, counts in split.annotated.items()},
                split.counts,
            )
            for name, split in self._splits.items()
        }
        return ShardIndex(storage, self.name, self.stored, source, splits)

    def _check_across(self, scan: Scan, split: str) -> None:
        for key in scan.table.keys:
            first = self._shard_of_key.setdefault(key, scan.file)
            if first != scan.file:
                self.faults.append(Fault(scan.file, key, "", f"the key is in {first} too"))
        for key, patient in scan.patients.items():
            first = self._split_of_patient.setdefault(patient, split)
            if first != split:
                problem = f"patient {patient!r} is in {first} and in {split}"
                self.faults.append(Fault(scan.file, key, "patient", problem))


def index_shards(
    folder: Path,
    name: str,
    stored: Mapping[str, Stored],
    files: Mapping[str, Sequence[str]],
    source: dict[str, Any] | None = None,
    keep_going: bool = False,
    workers: int = 0,
) -> Indexer:
    """Scans tars and writes a table beside each and, last, _info.json.

    Args:
        files: split -> names of its tars.
        keep_going: index what is sound and leave out what has a fault; otherwise nothing is
            written where anything has.
        workers: processes that scan.

    Returns:
        what was found; `faults` says what is wrong.
    """
    indexer, tables = Indexer(name, stored), {}
    jobs = [(folder / file, file, indexer.stored) for mine in files.values() for file in mine]
    splits = [split for split, mine in files.items() for _ in mine]
    for split, scan in zip(splits, scan_all(jobs, workers), strict=True):
        tables[scan.file] = indexer.add(split, scan)
    if indexer.faults and not keep_going:
        return indexer
    for file, table in tables.items():
        (folder / table_file(file)).write_text(table, encoding="utf-8")
    text = indexer.index(LocalFolder(folder), source).as_json()
    temporary = folder / f".{INFO_FILE}.writing"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / INFO_FILE)
    return indexer


def scan_all(jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Scan]:
    """The scans of many tars, in their order; each job holds the arguments of `scan_shard`."""
    with tqdm(total=len(jobs), unit="tar", disable=None, leave=False) as bar:
        if workers < 1:
            for job in jobs:
                yield scan_shard(*job)
                bar.update()
            return
        with ProcessPoolExecutor(workers) as pool:
            for future in [pool.submit(scan_shard, *job) for job in jobs]:
                yield future.result()
                bar.update()
