"""The numbers of the ledger: right for a plan that was kept, wrong for any other."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ark.accounts import Accounts
from ark.types import SKIP_REASONS, Batch, MulticlassTarget, Skipped


def batch(positions: list[int], bad: dict[int, str] | None = None, task: str = "a/b") -> Batch:
    """Of an evaluation: bad samples are left out."""
    skipped = [Skipped(p, reason, f"sample {p}") for p, reason in (bad or {}).items()]
    keys = [str(p) for p in positions if p not in (bad or {})]
    target = MulticlassTarget(torch.zeros(len(keys), dtype=torch.int64))
    return Batch(task, keys, torch.zeros(0), None, target, positions, [], skipped)


def entered(positions: list[int], share: int, ranks: int = 1) -> Accounts:
    """Accounts of several ranks, added up as a run does."""
    total = Accounts(["a/b"])
    for rank in range(ranks):
        mine = Accounts(["a/b"])
        for start in range(rank * share, len(positions), ranks * share):
            mine.enter(batch(positions[start : start + share]))
        total.add(mine.as_tensor())
    return total


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 5), st.randoms())
def test_a_plan_that_was_kept_adds_up(planned: int, share: int, ranks: int, draw: random.Random):
    positions = list(range(planned))
    draw.shuffle(positions)
    accounts = entered(positions, share, ranks)
    accounts.check("a/b", planned, "here")
    assert accounts.seen("a/b") == planned


@given(st.integers(2, 300), st.integers(1, 9), st.randoms())
def test_a_lost_repeated_or_foreign_sample_is_noticed(planned: int, share: int, draw) -> None:
    positions = list(range(planned))
    at, other = draw.sample(positions, 2)
    lost = positions[:at] + positions[at + 1 :]
    twice = [other if p == at else p for p in positions]
    foreign = [p + planned if p == at else p for p in positions]
    more = [*positions, other]
    for wrong in (lost, twice, foreign, more):
        with pytest.raises(RuntimeError, match=r"does not add up .here.*lost, repeated"):
            entered(wrong, share).check("a/b", planned, "here")


def test_two_faults_that_keep_the_sum_are_noticed() -> None:
    with pytest.raises(RuntimeError):  # 1 and 4 are there twice, 2 and 3 not
        entered([0, 1, 1, 4, 4, 5], 2).check("a/b", 6, "here")


def test_sums_of_long_runs_wrap_around() -> None:
    start, count = 2**40, 1000
    accounts = Accounts(["a/b"])
    # what 2**40 positions before would have left
    before = [start * (start - 1) // 2, (start - 1) * start * (2 * start - 1) // 6, start]
    accounts.numbers[0, :3] = [number % 2**64 for number in before]
    accounts.enter(batch(list(range(start, start + count))))
    accounts.check("a/b", start + count, "here")
    with pytest.raises(RuntimeError):
        accounts.check("a/b", start + count - 1, "here")


def test_skipped_samples_are_counted_by_reason() -> None:
    accounts = Accounts(["a/b", "c/d"])
    accounts.enter(batch([0, 1, 2, 3], {1: "image", 3: "checksum"}))
    accounts.enter(batch([4, 5], {4: "image"}))
    assert accounts.seen("a/b") == 3
    assert accounts.skipped("a/b") == {"checksum": 1, "image": 2}
    accounts.check("a/b", 6, "here")
    accounts.check("c/d", 0, "here")
    assert set(SKIP_REASONS) == {"shard", "checksum", "image", "annotation"}
