"""500 damaged folders of shards: a message that names the place, or sound data; nothing else."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corrupting import KINDS, damage

from ark.accounts import Accounts
from ark.cycle import Cycle, Phase
from ark.types import Batch, ConfigError, TaskSpec
from datamodules.sources import FolderSource
from datamodules.stream import EvalBatches, Failed, OnBad, Share, TaskData, TrainBatches
from datamodules.tars.index import ShardIndex
from datamodules.tars.indexing import index_shards
from datamodules.tars.shards import ShardReader
from datamodules.tars.validating import validate_index
from datamodules.tars.writing import write_shards
from datamodules.transforms import Augment

SEEDS = 500
STEPS, BATCH = 3, 4
FAST = 32  # seeds that every run tries: two of each kind
STILL = Augment(rotate=0, shift=0, scale=0, brightness=0, gamma=0)  # half of the time otherwise


def chunks() -> list:
    fast = [pytest.param(range(FAST), id="fast")]
    rest = [range(start, min(start + 117, SEEDS)) for start in range(FAST, SEEDS, 117)]
    return fast + [pytest.param(r, id=f"{r[0]}-{r[-1]}", marks=pytest.mark.slow) for r in rest]


@pytest.mark.parametrize("seeds", chunks())
def test_damaged_shards(folder, tmp_path: Path, seeds: range) -> None:
    sound = tmp_path / "sound"
    for like_another in ("heart_read", "organs", "grade"):
        del folder.args["annotations"][like_another]
    write_shards(FolderSource(**folder.args), "tiny", sound, max_shard_bytes=3000)
    assert len(list(sound.glob("train-*.tar"))) > 1
    before = set(tmp_path.iterdir())
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        broken, trap = tmp_path / f"broken{seed}", tmp_path / "trap"
        shutil.copytree(sound, broken)
        what = damage(broken, seed, trap)
        signal.alarm(60)  # a hang ends the test with a traceback
        try:
            outcomes += examine(sound, broken)
        except Exception as error:
            error.add_note(f"seed {seed}: {what}")
            raise
        finally:
            signal.alarm(0)
        assert not trap.exists(), f"seed {seed}: {what}: code of a shard ran"
        shutil.rmtree(broken)
        assert set(tmp_path.iterdir()) == before, f"seed {seed}: {what}: wrote outside"
    # all ends occur, or the damage is not what it seems
    assert min(outcomes[o] for o in ("refused", "failed", "skipped", "found")) > 0, outcomes


def examine(sound: Path, broken: Path) -> Counter[str]:
    """Does everything that reads shards; raises where one does not behave."""
    outcomes: Counter[str] = Counter()
    stored = ShardIndex.load(sound).stored
    files = {s: [p.name for p in sorted(broken.glob(f"{s}-*.tar"))] for s in ("train", "val")}
    try:
        index = ShardIndex.load(broken)
    except ConfigError as error:
        assert str(broken) in str(error)  # noqa: PT017 - one of two good ends
        outcomes["refused"] += 1
    else:
        outcomes += stream(index, broken)
        faults = validate_index(index).faults
        assert bool(faults) == (contents(sound) != contents(broken))
        assert all(fault.problem and (fault.shard or fault.key) for fault in faults)
        outcomes["found"] += bool(faults)
    indexer = index_shards(broken, "tiny", stored, files, keep_going=True)
    assert all(fault.shard.endswith(".tar") for fault in indexer.faults)
    outcomes += stream(ShardIndex.load(broken), broken)
    return outcomes


def contents(folder: Path) -> dict[str, Any]:
    """All bytes of the folder, but of _info.json what it says of the shards: no tar knows better
    what a dataset is called and where it came from."""
    index = ShardIndex.load(folder)
    said = {name: split.as_config(name) for name, split in index.splits.items()}
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "_info.json": (said, index.stored)
    }


def stream(index: ShardIndex, folder: Path) -> Counter[str]:
    """Trains on and evaluates every task under both policies; the ledger must add up."""
    outcomes: Counter[str] = Counter()
    for name, spec in index.annotations.items():
        task = TaskSpec("tiny", name, spec.kind, spec.classes)
        for on_bad in ("error", "skip"):
            for split in index.splits:
                data = TaskData(task, ShardReader(index), split)
                if data.size:
                    outcomes[train(data, on_bad, folder)] += 1
                    outcomes[evaluate(data, on_bad, folder)] += 1
    return outcomes


def train(data: TaskData, on_bad: OnBad, folder: Path) -> str:
    key = data.spec.key
    cycle = Cycle([Phase(key, steps=STEPS)], [STEPS], 1)
    batches = TrainBatches(cycle, {key: data}, Share(BATCH), 0, 32, STILL, on_bad)
    return drain(batches, key, STEPS * BATCH, on_bad, folder)


def evaluate(data: TaskData, on_bad: OnBad, folder: Path) -> str:
    return drain(
        EvalBatches([data], 3, 32, on_bad=on_bad), data.spec.key, data.size, on_bad, folder
    )


def drain(batches, key: str, planned: int, on_bad: OnBad, folder: Path) -> str:
    """Reads all batches; "failed", "skipped" or "whole"."""
    accounts = Accounts([key])
    for item in range(len(batches)):
        batch: Batch | Failed = batches[item]
        if isinstance(batch, Failed):
            assert str(folder) in batch.message or key in batch.message
            assert on_bad == "error" or "in a row" in batch.message
            return "failed"
        assert all(str(folder) in skipped.message for skipped in batch.skipped)
        assert len(batch.keys) == len(batch.images)
        accounts.enter(batch)
    accounts.check(key, planned, "test")
    return "skipped" if accounts.skipped(key) else "whole"


def test_every_kind_of_damage_is_tried() -> None:
    assert len(KINDS) <= FAST
