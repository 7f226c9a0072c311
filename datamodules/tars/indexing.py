"""From tars to their index: a table beside each tar and one _info.json."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ark.types import ConfigError
from datamodules.sources.base import SPLITS
from datamodules.tars.counting import Counts, Ranges, add_counts, add_ranges, zero_counts
from datamodules.tars.hashes import sha256_of_bytes
from datamodules.tars.index import INFO_FILE, Shard, ShardIndex, SplitIndex
from datamodules.tars.scanning import Fault, Scan, counted, scan_shard
from datamodules.tars.shard_table import table_file
from datamodules.tars.storage import LocalFolder, Storage
from datamodules.tars.stored import Stored

T = TypeVar("T")


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
        self.ranges: Ranges = {}
        self._splits: dict[str, _Split] = {}
        self._shard_of_key: dict[str, str] = {}
        self._split_of_patient: dict[str, str] = {}

    def check_across(self, split: str, scan: Scan) -> set[str]:
        """Compares a tar's samples with the sound ones of all tars before; once, ahead of `add`.

        Returns:
            keys in its table that must not be used: of these, and of samples in pieces.
        """
        bad = {fault.key for fault in scan.faults}
        for key in sorted(scan.keys):
            first = self._shard_of_key.get(key, scan.file)
            if first != scan.file:
                bad.add(key)
                problem = f"its key is in {first} too; rename or remove one of the two"
                self.faults.append(Fault(scan.file, key, "", problem))
        for key, patient in scan.patients.items():
            first = self._split_of_patient.get(patient, split)
            if first != split:
                bad.add(key)
                problem = f"patient {patient!r} is in {first} and in {split}; keep them in one"
                self.faults.append(Fault(scan.file, key, "patient", problem))
        keys = set(scan.table.keys)
        new = keys - bad
        self._shard_of_key |= dict.fromkeys(new, scan.file)
        self._split_of_patient |= {
            patient: split for key, patient in scan.patients.items() if key in new
        }
        return bad & keys

    def add(self, split: str, scan: Scan) -> str:
        """Takes in the scan of a tar; returns the text of its table, "" if it cannot be read."""
        self.faults += scan.faults
        if not scan.sha256:
            return ""
        self.unread += scan.unread
        self.sizes.update(scan.sizes)
        add_ranges(self.ranges, scan.ranges)
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


def find_tars(
    folder: LocalFolder, config: Mapping[str, Any], place: str
) -> tuple[dict[str, list[str]], list[str]]:
    """The tars of a folder by split, as the `index` of a dataset's YAML says it.

    Returns:
        split -> names of its tars, and the names of the tars that are of no split.

    Raises:
        ConfigError: wrong patterns, a pattern without a tar, a tar of two splits, or one that no
            reader will open.
    """
    there = [name for name in folder.list() if name.endswith(".tar")]
    stated = _patterns(config, place)
    patterns = stated or {split: f"{split}-*.tar" for split in SPLITS}
    splits_of = {name: [s for s, p in patterns.items() if fnmatch(name, p)] for name in there}
    files = {s: [name for name in there if s in splits_of[name]] for s in patterns}
    seen = f"{folder.where!r} has {counted(len(there), 'tar')}, as {there[:3]}"
    if missing := [split for split in stated if not files[split]]:
        raise ConfigError(
            f"{place}.splits: {missing[0]} is {patterns[missing[0]]!r}, which matches no tar; "
            f"patterns know *, ? and [abc]; {seen}"
        )
    if not any(files.values()):
        raise ConfigError(
            f"{place}.splits: no tar is named train-*.tar, val-*.tar or test-*.tar; say which are "
            f'which: {{train: "PATTERN", ...}}; {seen}'
        )
    if twice := [name for name, splits in splits_of.items() if len(splits) > 1]:
        raise ConfigError(
            f"{place}.splits: {twice[0]!r} is of {' and of '.join(splits_of[twice[0]])}; narrow "
            "the patterns so that each tar is of one split"
        )
    for name in (name for mine in files.values() for name in mine):
        folder.fetch(name)  # refuses odd names and links out of the folder
    return {s: mine for s, mine in files.items() if mine}, [n for n in there if not splits_of[n]]


def _patterns(config: Mapping[str, Any], place: str) -> dict[str, str]:
    """Split -> pattern, as the YAML has them."""
    if unknown := sorted(set(config) - {"splits", "annotations"}):
        raise ConfigError(
            f"{place}: unknown key {unknown[0]!r}; expected `splits` and `annotations`"
        )
    patterns = config.get("splits") or {}
    if not isinstance(patterns, dict) or not all(isinstance(p, str) for p in patterns.values()):
        raise ConfigError(
            f"{place}.splits is {patterns!r}; expected one pattern a split, as {{train: "
            '"train-*.tar"}'
        )
    if unknown := sorted(set(patterns) - set(SPLITS)):
        raise ConfigError(
            f"{place}.splits: unknown split {unknown[0]!r}; expected some of {list(SPLITS)}"
        )
    return patterns


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
    for split, job, scan in zip(splits, jobs, scan_all(scan_shard, jobs, workers), strict=True):
        if (bad := indexer.check_across(split, scan)) and keep_going:
            scan = scan_shard(*job, leave_out=bad)
        if table := indexer.add(split, scan):
            tables[scan.file] = table
    if indexer.faults and not keep_going:
        return indexer
    for file, table in tables.items():
        (folder / table_file(file)).write_text(table, encoding="utf-8")
    text = indexer.index(LocalFolder(folder), source).as_json()
    temporary = folder / f".{INFO_FILE}.writing"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / INFO_FILE)
    return indexer


def scan_all(scan: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """`scan(*job)` of every job, in their order, in `workers` processes."""
    with tqdm(total=len(jobs), unit="tar", disable=None, leave=False) as bar:
        if workers < 1:
            for job in jobs:
                yield scan(*job)
                bar.update()
            return
        with ProcessPoolExecutor(workers) as pool:
            futures = deque(pool.submit(scan, *job) for job in jobs)
            while futures:
                yield futures.popleft().result()
                bar.update()
