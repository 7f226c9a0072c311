"""The order of samples: what must hold for any shards, batch size, ranks and workers."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ark.seeds import seed_at, seed_of
from datamodules.order import Order, rank_positions, rank_share

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


def pairs(order: Order, positions: np.ndarray | range) -> list[tuple[int, int]]:
    """(shard, ordinal) of each position."""
    return list(zip(*(column.tolist() for column in order.locate(positions)), strict=True))


def everything(lengths: list[int]) -> set[tuple[int, int]]:
    return {(shard, n) for shard, length in enumerate(lengths) for n in range(length)}


@given(LENGTHS, st.integers(1, 40), st.integers(0, 3), st.integers(0, 10**6))
def test_each_pass_holds_every_sample_once(lengths, batch_size, seed, number) -> None:
    order = Order(lengths, seed, "a/b", batch_size)
    found = pairs(order, range(number * order.size, (number + 1) * order.size))
    assert len(found) == order.size
    assert set(found) == everything(lengths)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 500), st.integers(1, 30))
def test_any_position_can_be_asked_for_alone(lengths, batch_size, start, count) -> None:
    together = pairs(Order(lengths, 0, "a/b", batch_size), range(start, start + count))
    fresh = Order(lengths, 0, "a/b", batch_size)
    alone = [pairs(fresh, range(p, p + 1))[0] for p in reversed(range(start, start + count))]
    assert alone[::-1] == together


@given(
    LENGTHS,
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 30),
)
def test_the_global_order_is_the_same_however_it_is_shared(
    lengths, share, world, accumulate, workers, step
) -> None:
    """`workers` build every `workers`-th item, each with an Order of its own."""
    batch_size = share * world * accumulate
    whole = pairs(
        Order(lengths, 0, "a/b", batch_size), range(step * batch_size, (step + 1) * batch_size)
    )
    pool = [Order(lengths, 0, "a/b", batch_size) for _ in range(workers)]
    parts = []
    for micro in range(accumulate):
        worker = pool[(step * accumulate + micro) % workers]
        for rank in range(world):
            sizes = {"batch_size": batch_size, "accumulate": accumulate, "world": world}
            parts += pairs(worker, rank_positions(step, micro, rank, **sizes))
    assert parts == whole


@given(st.integers(0, 200), st.integers(1, 50))
def test_evaluation_gives_each_sample_to_one_rank(size: int, world: int) -> None:
    shares = [rank_share(size, rank, world) for rank in range(world)]
    assert [number for share in shares for number in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_passes_streams_seeds_and_batch_sizes_have_orders_of_their_own() -> None:
    def order(seed: int, stream: str, number: int, batch_size: int = 8):
        made = Order([10] * 5, seed, stream, batch_size)
        return tuple(pairs(made, range(50 * number, 50 * number + 50)))

    orders = [order(0, "a/b", 0), order(0, "a/b", 1), order(0, "a/c", 0), order(1, "a/b", 0)]
    assert len({*orders, order(0, "a/b", 0, 48)}) == 5
    assert order(0, "a/b", 0) == orders[0]


def test_a_batch_mixes_shards_and_samples_even_where_shards_are_sorted_by_class() -> None:
    """40 shards of 50 samples, 4 shards a class: a batch of 16 must not be of few classes."""
    order = Order([50] * 40, 0, "a/b", 16)
    classes = order.locate(range(2000))[0].reshape(125, 16) // 4
    distinct = [len(set(batch)) for batch in classes.tolist()]
    # drawn with replacement, 16 of 10 classes hold 8.1 distinct ones on average
    assert np.mean(distinct) > 7
    assert min(distinct) >= 4


def test_all_orders_of_a_small_set_are_about_equally_frequent() -> None:
    found = Counter(tuple(pairs(Order([4], seed, "s", 4), range(4))) for seed in range(2400))
    assert len(found) == 24
    assert 60 < min(found.values()) <= max(found.values()) < 150  # 100 each, deviation 10


@pytest.mark.parametrize("world", [1, 4, 64])
def test_a_rank_stays_in_its_own_shards(world: int) -> None:
    """Nearly sequential: a rank opens little more than its share of the shards, each once."""
    shards, samples, batch_size = 512, 100, 64
    order = Order([samples] * shards, 0, "a/b", batch_size)
    steps = shards * samples // batch_size
    share = batch_size // world
    for rank in {0, world // 2, world - 1}:
        mine = np.arange(steps)[:, None] * batch_size + rank * share + np.arange(share)
        found = order.locate(mine.ravel())[0].reshape(steps, share)
        assert len(np.unique(found)) <= shards / world + share
        for slot in found.T:  # within a lane a shard that was left does not come again
            assert np.count_nonzero(np.diff(slot)) == len(np.unique(slot)) - 1


def test_a_hundred_million_samples_on_4096_ranks_fit_into_little_memory() -> None:
    """tools/bench_order.py measures the time too."""
    shards, ranks, share = 100_000, 4096, 8
    tracemalloc.start()
    try:
        order = Order(np.full(shards, 1000), 0, "a/b", ranks * share)
        steps = order.size // (ranks * share)
        found = []
        for rank in (17, 18):
            start = np.arange(steps)[:, None] * ranks * share + rank * share
            found.append(order.locate((start + np.arange(share)).ravel()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    samples = [shard * 1000 + ordinal for shard, ordinal in found]
    assert len(np.unique(np.concatenate(samples))) == 2 * steps * share
    assert all(len(np.unique(shard)) < 40 for shard, _ in found)


def test_the_world_may_be_larger_than_the_number_of_shards() -> None:
    order = Order([7, 5], 0, "a/b", 32)
    found = [
        pair
        for rank in range(32)
        for pair in pairs(order, rank_positions(0, 0, rank, batch_size=32, accumulate=1, world=32))
    ]
    assert Counter(found[:24]) == Counter(dict.fromkeys(everything([7, 5]), 2))


def test_the_order_is_the_recorded_one() -> None:
    """A run resumed after an upgrade of numpy goes on with the same samples, or this fails."""
    found = pairs(Order([5, 3], 0, "a/b", 4), range(8, 16))
    assert found == [(1, 1), (1, 2), (1, 0), (0, 4), (0, 3), (0, 1), (0, 2), (0, 0)]


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' has no sample"):
        Order([0, 0], 0, "a/b", 4)


def test_seeds_are_the_same_everywhere_and_differ_by_what_they_are_for() -> None:
    assert seed_of("order", 0, "a/b", 1) == 5352019207593852426
    seeds = Counter(seed_at(base, p) for base in (0, 1, 2**62) for p in range(10_000))
    assert max(seeds.values()) == 1
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = sum(seed.bit_count() for seed in seeds) / len(seeds)
    assert ones == pytest.approx(31.5, abs=0.1)
    # the first outputs of splitmix64 seeded with 1234567, as published with it
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [seed_at(1234567, p) for p in range(3)] == [number >> 1 for number in published]
