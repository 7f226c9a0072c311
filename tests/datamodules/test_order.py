from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ark.seeds import seed_of
from datamodules.order import rank_positions, sample_at


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 4))
def test_each_pass_holds_every_sample_once(size: int, seed: int, epoch: int) -> None:
    positions = range(epoch * size, (epoch + 1) * size)
    assert sorted(sample_at(p, size, seed, "a/b") for p in positions) == list(range(size))


def test_passes_streams_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, stream: str, start: int) -> list[int]:
        return [sample_at(start + p, 50, seed, stream) for p in range(50)]

    orders = [order(0, "a/b", 0), order(0, "a/b", 50), order(0, "a/c", 0), order(1, "a/b", 0)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, "a/b", 0) == orders[0]


@given(
    st.integers(0, 20),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (2, 3), (12, 1), (3, 4)]),
)
def test_ranks_and_micro_batches_share_the_global_batch(step: int, split: tuple[int, int]) -> None:
    world, accumulate = split
    shares = [
        rank_positions(step, micro, rank, batch_size=12, accumulate=accumulate, world=world)
        for micro in range(accumulate)
        for rank in range(world)
    ]
    found = [position for share in shares for position in share]
    assert found == list(range(step * 12, (step + 1) * 12))


def test_seeds_are_the_same_everywhere_and_differ_by_what_they_are_for() -> None:
    assert seed_of("order", 0, "a/b", 1) == 5352019207593852426
    seeds = Counter(seed_of("augment", 0, "a", p) for p in range(1000))
    assert max(seeds.values()) == 1
    assert all(0 <= seed < 2**63 for seed in seeds)
