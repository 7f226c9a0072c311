#!/usr/bin/env python
"""What the order of samples costs one rank of a large run: time, memory and shards it reads.

    python tools/bench_order.py

Every row is measured in a fresh process; memory is what its peak grew by after imports. "index" is
reading an _info.json of that many shards; "order" is one whole pass of rank 17: which sample, in
which shard, at every step.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from datamodules.annotations import AnnotationSpec
from datamodules.order import Order
from datamodules.tars.index import INFO_FILE, Shard, ShardIndex, SplitIndex
from datamodules.tars.storage import LocalFolder
from datamodules.tars.stored import Stored

SIZES = (  # samples, shards, ranks, samples of a rank in a step
    (1_000_000, 1_000, 8, 32),
    (10_000_000, 10_000, 256, 16),
    (100_000_000, 100_000, 4_096, 8),
    (1_000_000_000, 1_000_000, 4_096, 8),
)


def peak() -> float:
    """Peak resident memory of this process, MB. (getrusage's would be the parent's, if larger.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def order(samples: int, shards: int, ranks: int, share: int) -> dict[str, Any]:
    lengths = np.full(shards, samples // shards)
    before, start = peak(), time.perf_counter()
    made = Order(lengths, 0, "bench/task", ranks * share)
    first = made.locate(np.arange(share) + 17 * share)
    ready = time.perf_counter() - start
    steps = samples // (ranks * share)
    positions = np.arange(steps)[:, None] * ranks * share + 17 * share + np.arange(share)
    found = made.locate(positions.ravel())[0]
    whole = time.perf_counter() - start
    assert found[: len(first[0])].tolist() == first[0].tolist()
    return {
        "first batch, ms": ready * 1e3,
        "whole pass, ms": whole * 1e3,
        "order, MB": peak() - before,
        "its samples": len(found),
        "its shards": len(np.unique(found)),
    }


def index(shards: int, folder: str) -> dict[str, Any]:
    before, start = peak(), time.perf_counter()
    loaded = ShardIndex.load(folder)
    assert len(loaded.splits["train"].shards) == shards
    size = (Path(folder) / INFO_FILE).stat().st_size / 1e6
    seconds = time.perf_counter() - start
    return {"_info.json, MB": size, "index, ms": seconds * 1e3, "index, MB": peak() - before}


def write_index(shards: int, samples: int, folder: Path) -> None:
    stored = {"label": Stored.ours("label", AnnotationSpec("multiclass", ("a", "b")))}
    each = samples // shards
    rows = tuple(
        Shard(f"train-{n:07d}.tar", each, 10**8, f"{n:064x}", 10**5, f"{n:064x}")
        for n in range(shards)
    )
    counts = {"label": {c: {"known": samples, "present": samples // 2} for c in ("a", "b")}}
    split = SplitIndex(rows, {"label": np.full(shards, each)}, counts)
    made = ShardIndex(LocalFolder(folder), "bench", stored, None, {"train": split})
    (folder / INFO_FILE).write_text(json.dumps(json.loads(made.as_json())))


def main() -> None:
    fresh = multiprocessing.get_context("spawn")
    rows = []
    for samples, shards, ranks, share in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_index(shards, samples, Path(folder))
            with fresh.Pool(1, maxtasksperchild=1) as pool:
                measured = pool.apply(order, (samples, shards, ranks, share))
                measured |= pool.apply(index, (shards, folder))
        sizes = {"samples": f"{samples:,}", "shards": f"{shards:,}", "ranks": ranks}
        rows.append(sizes | measured)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".0f"))


if __name__ == "__main__":
    main()
