"""Few-shot draws: how many, which, and that nothing else is ever trained on."""

from __future__ import annotations

import numpy as np
import pytest
from commands import DATASETS, TASKS, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from ark.cycle import Phase
from ark.planning import CycleConfig
from ark.types import ConfigError
from datamodules.config import DatasetConfig, load_datasets
from datamodules.mixture import Mixture
from datamodules.shots import draw_shots
from datamodules.stream import Share, TrainBatches
from datamodules.transforms import Augment

FINDINGS, BOXES, ORGANS, DIAGNOSIS = TASKS  # of 12 training samples each


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.data())
def test_a_draw_has_that_many_samples_and_a_smaller_one_is_a_part_of_it(lengths, data) -> None:
    size = sum(lengths)
    if not size:
        return
    more = data.draw(st.integers(1, size))
    fewer = data.draw(st.integers(1, more))
    large, small = (draw_shots(np.array(lengths), n, 0, "x/y") for n in (more, fewer))
    assert sum(map(len, large)) == more
    for stored, drawn, part in zip(lengths, large, small, strict=True):
        assert np.all(np.diff(drawn) > 0)
        assert set(part) <= set(drawn) <= set(range(stored))


def test_draws_differ_by_seed_and_task_and_each_sample_is_as_likely() -> None:
    lengths = np.array([30, 10])
    drawn = [np.concatenate(draw_shots(lengths, 8, seed, "x/y")) for seed in range(400)]
    other = np.concatenate(draw_shots(lengths, 8, 0, "x/z"))
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], other)
    first = [len(draw_shots(lengths, 8, seed, "x/y")[0]) for seed in range(400)]
    assert np.mean(first) == pytest.approx(6, abs=0.25)  # 30 of 40; deviation of the mean: 0.06


@pytest.mark.parametrize(("share", "count"), [(0.25, 10), (1.0, 40), (0.001, 1)])
def test_a_share_is_of_all_and_never_nothing(share: float, count: int) -> None:
    assert sum(map(len, draw_shots(np.array([30, 10]), share, 0, "x/y"))) == count


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetConfig]:
    folder = tmp_path_factory.mktemp("shots")
    write_recipe(folder)
    return load_datasets([str(folder / f"{name}.yaml") for name in DATASETS])


@pytest.fixture(scope="module")
def few(datasets: list[DatasetConfig]) -> Mixture:
    return make(datasets, {FINDINGS: 5, "detection": 0.5, ORGANS: 1})


def make(datasets: list[DatasetConfig], shots: dict) -> Mixture:
    cycle = CycleConfig(cycles=4, each=[Phase(passes=1)])
    return Mixture(datasets, cycle, batch_size=4, image_size=32, shots=shots)


def test_a_run_sees_the_drawn_samples_and_no_other(few: Mixture) -> None:
    data = {key: few.data(key, "train") for key in TASKS}
    train = TrainBatches(few.plan, data, Share(4), 0, 32, Augment())
    seen: dict[str, list[str]] = {key: [] for key in TASKS}
    for step in range(len(train)):
        batch = train[step]
        seen[batch.task].extend(batch.keys)
    assert {key: len(set(keys)) for key, keys in seen.items()} == {
        FINDINGS: 5, BOXES: 6, ORGANS: 1, DIAGNOSIS: 12
    }  # fmt: skip
    for key in (FINDINGS, BOXES):
        size = data[key].size
        places = data[key].locate(range(size))
        drawn = sorted(data[key].read(*place).key for place in places)
        assert data[key].numbers(*map(np.array, zip(*places, strict=True))) == list(range(size))
        passes = [seen[key][start : start + size] for start in range(0, len(seen[key]), size)]
        assert len(passes) > 2
        assert all(sorted(keys) == drawn for keys in passes if len(keys) == size)


def test_the_plan_the_ledger_and_the_statistics_count_what_was_drawn(few: Mixture) -> None:
    assert few.plan.lengths == [1, 2, 1, 3]  # a pass, at 4 a step
    assert [few.data(key, "val").size for key in TASKS] == [6] * 4
    assert "5 train (drawn: shots 5), 6 val" in few.describe()
    (batch,) = few.samples(FINDINGS, 100)
    assert len(batch.keys) == 5


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ({FINDINGS: 13}, "data.shots: tiny_findings/findings: 13, but only 12 training samples"),
        ({"multilabel": 0}, "multilabel: 0; expected a number of samples from 1 on, or a share"),
        ({"multilabel": 1.5}, r"multilabel: 1.5; expected .* in \(0, 1\] such as 0.1"),
        ({"tiny/typo": 3}, "data.shots: 'tiny/typo' is neither a task nor a kind of task"),
    ],
)
def test_a_wrong_number_is_said(datasets, shots: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(datasets, shots)
