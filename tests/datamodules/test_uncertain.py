"""Uncertain labels: what each policy makes of them, and that it is a function of the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sources import ListSource

from ark.cycle import Phase
from ark.planning import CycleConfig
from ark.types import ConfigError, TaskSpec
from datamodules.annotations import AnnotationSpec
from datamodules.config import DatasetConfig, TaskConfig
from datamodules.imaging.images import encode_png
from datamodules.mixture import Mixture
from datamodules.sources import SourceSample
from datamodules.stream import EvalBatches, Share, TrainBatches
from datamodules.tars.index import ShardIndex
from datamodules.tars.writing import write_shards
from datamodules.transforms import Augment
from datamodules.uncertain import POLICIES, Uncertain, unknown

CLASSES = ("Edema", "Mass", "Hernia")
TASK = TaskSpec("x", "findings", "multilabel", CLASSES)
KEY = TASK.key
UNSURE = np.float32([-1, -1, -1])
RANGES = {
    "zeros": (0, 0),
    "ones": (1, 1),
    "smoothed_ones": (0.55, 0.85),
    "smoothed_zeros": (0, 0.3),
}


def policy(config: Any) -> Uncertain:
    found = Uncertain.checked(config, TASK)
    assert found is not None
    return found


@pytest.mark.parametrize("name", RANGES)
def test_draws_fill_the_policys_range(name: str) -> None:
    low, high = RANGES[name]
    drawn = np.stack([policy(name)(UNSURE, seed) for seed in range(2000)])
    assert drawn.dtype == np.float32
    assert drawn.min() == pytest.approx(low, abs=1e-3)
    assert drawn.max() == pytest.approx(high, abs=1e-3)
    assert low <= drawn.min() <= drawn.max() <= high + 1e-6
    # uniform, and the classes are drawn apart: each quarter as often, no correlation
    if high > low:
        quarters = np.histogram(drawn, 4, (low, high))[0] / drawn.size
        np.testing.assert_allclose(quarters, 0.25, atol=0.03)
        assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.1


def test_ignored_labels_are_unknown_and_that_is_the_default() -> None:
    labels = np.float32([-1, 1, np.nan])
    expected = np.float32([np.nan, 1, np.nan])
    for config in ("ignore", None, {}, {"Mass": "ones"}, {"default": "ignore"}):
        np.testing.assert_array_equal(policy(config)(labels, 3), expected)
    np.testing.assert_array_equal(unknown(labels), expected)


def test_policies_by_class() -> None:
    mixed = policy({"Edema": "ones", "Mass": "smoothed_ones", "default": "zeros"})
    assert mixed.policies == {"Edema": "ones", "Mass": "smoothed_ones", "Hernia": "zeros"}
    edema, mass, hernia = mixed(UNSURE, 5)
    assert (edema, hernia) == (1, 0)
    assert 0.55 <= mass <= 0.85


@given(
    labels=st.lists(st.sampled_from([-1.0, 0.0, 1.0, np.nan]), min_size=3, max_size=3),
    seed=st.integers(0, 2**63 - 1),
    name=st.sampled_from(list(POLICIES)),
)
def test_certain_labels_stay_and_a_draw_depends_on_seed_and_class_alone(
    labels: list[float], seed: int, name: str
) -> None:
    stored = np.float32(labels)
    drawn, whole = policy(name)(stored, seed), policy(name)(UNSURE, seed)
    expected = np.where(stored == -1, whole, stored)
    np.testing.assert_array_equal(drawn, expected)
    assert not (drawn == -1).any()


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ("maybe", "multilabel", ["x/findings: uncertain is 'maybe'", "smoothed_ones"]),
        ({"Edema": "maybe"}, "multilabel", ["is 'maybe'"]),
        ({"Edema": 1}, "multilabel", ["is 1;"]),
        (["ones"], "multilabel", ["is ['ones']"]),
        ({"Oedema": "ones"}, "multilabel", ["names 'Oedema'", "'Edema'", "'default'"]),
        ("ones", "multiclass", ["is 'ones', but the task is multiclass", "drop it"]),
    ],
)
def test_wrong_policies(config: Any, kind: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Uncertain.checked(config, TaskSpec("x", "findings", kind, CLASSES))
    for word in words:
        assert word in str(caught.value), caught.value


def test_other_kinds_have_none() -> None:
    assert Uncertain.checked("ignore", TaskSpec("x", "y", "multiclass", CLASSES)) is None


# -- through shards and batches ----------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples a split: Edema uncertain on all, Mass by turns 1 and uncertain."""
    image = encode_png(np.zeros((8, 8), np.uint8))
    splits = {
        split: [
            SourceSample(
                f"{split}{n}",
                image,
                (8, 8),
                {"findings": {"Edema": -1, "Mass": (-1, 1)[n % 2], "Hernia": 0}},
            )
            for n in range(6)
        ]
        for split in ("train", "val", "test")
    }
    folder = tmp_path_factory.mktemp("uncertain") / "x"
    source = ListSource({"findings": AnnotationSpec("multilabel", CLASSES)}, **splits)
    write_shards(source, "x", folder)
    return folder


def mixture(shards: Path, uncertain: Any = "ignore") -> Mixture:
    task = TaskConfig("findings", {"class_path": "x.Y"}, uncertain)
    cycle = CycleConfig(cycles=4, each=[Phase(passes=1)])
    return Mixture([DatasetConfig("x", str(shards), [task])], cycle, batch_size=3, image_size=8)


def labels(mixture: Mixture, steps: range, augment: Augment = Augment()) -> list[dict[str, Any]]:  # noqa: B008
    """Key -> labels and known of each step's batch."""
    data = {KEY: mixture.data(KEY, "train")}
    batches = TrainBatches(mixture.plan, data, Share(3), 0, 8, augment)
    found = []
    for step in steps:
        batch = batches[step]
        rows = zip(batch.target.labels.tolist(), batch.target.known.tolist(), strict=True)
        found.append(dict(zip(batch.keys, rows, strict=True)))
    return found


def test_the_same_in_every_resume_and_another_in_every_pass(shards: Path) -> None:
    run = mixture(shards, "smoothed_ones")
    whole = labels(run, range(8))
    assert labels(run, range(3, 8)) == whole[3:], "a resumed run draws other labels"
    passes = [whole[n] | whole[n + 1] for n in range(0, 8, 2)]
    drawn = [row[0] for one in passes for row in (one[f"train{n}"][0] for n in range(6))]
    assert len(set(drawn)) == len(drawn), "a sample drew the same label in two passes"
    for one in passes:
        for n in range(6):
            (edema, mass, hernia), known = one[f"train{n}"]
            assert 0.55 <= edema <= 0.85
            assert mass == 1 if n % 2 else 0.55 <= mass <= 0.85
            assert (hernia, known) == (0, [True] * 3)


def test_ignored_labels_reach_no_loss(shards: Path) -> None:
    for n, (row, known) in (
        (int(key[-1]), value) for key, value in labels(mixture(shards), range(1))[0].items()
    ):
        assert known == [False, bool(n % 2), True]
        assert row == [0, n % 2, 0]


def test_in_evaluation_they_are_unknown_whatever_the_policy(shards: Path) -> None:
    run = mixture(shards, "ones")
    for split in ("val", "test"):
        batch = EvalBatches([run.data(KEY, split)], 6, 8)[0]
        mass = torch.tensor([bool(n % 2) for n in range(6)])
        expected = torch.stack([torch.zeros(6).bool(), mass, torch.ones(6).bool()], dim=1)
        assert torch.equal(batch.target.known, expected)
        assert not batch.target.labels[~expected].any()


def test_a_resumed_run_must_have_the_same_policy(shards: Path) -> None:
    one, same, other = (
        mixture(shards, config).state_dict()
        for config in ({"default": "ones"}, "ones", {"Edema": "zeros", "default": "ones"})
    )
    assert one == same != other
    assert other["uncertain"] == {KEY: {"Edema": "zeros", "Mass": "ones", "Hernia": "ones"}}


def test_wrong_policies_stop_before_training(shards: Path) -> None:
    with pytest.raises(ConfigError, match="task x/findings: uncertain names 'Oedema'"):
        mixture(shards, {"Oedema": "ones"})


def test_they_are_counted_as_known_and_not_as_present(shards: Path) -> None:
    counts = ShardIndex.load(shards).splits["train"].counts["findings"]
    assert counts == {
        "Edema": {"known": 6, "present": 0, "uncertain": 6},
        "Mass": {"known": 6, "present": 3, "uncertain": 3},
        "Hernia": {"known": 6, "present": 0},
    }
