"""The batches of a run: which samples, in which step, on which rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import DATASETS, TASKS, write_recipe
from sources import ListSource

from ark.cycle import Cycle, Phase
from ark.planning import CycleConfig
from ark.types import Batch, ConfigError, TaskSpec
from datamodules.annotations import AnnotationSpec
from datamodules.config import DatasetConfig, load_datasets
from datamodules.imaging.images import encode_png
from datamodules.loader import FromStep
from datamodules.mixture import Mixture
from datamodules.sources import SourceSample
from datamodules.stream import EvalBatches, Share, TaskData, TrainBatches
from datamodules.tars.shards import Address, ShardReader
from datamodules.tars.writing import write_shards
from datamodules.transforms import Augment, Transform


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetConfig]:
    folder = tmp_path_factory.mktemp("mixture")
    write_recipe(folder)
    return load_datasets([str(folder / f"{name}.yaml") for name in DATASETS])


def make(datasets: list[DatasetConfig], **options) -> Mixture:
    cycle = CycleConfig(cycles=2, each=[Phase(lock=["backbone"], passes=0.5), Phase(passes=1)])
    return Mixture(datasets, cycle, batch_size=4, image_size=32, **options)


def batches(mixture: Mixture, rank: int = 0, world: int = 1, accumulate: int = 1) -> TrainBatches:
    data = {key: mixture.data(key, "train") for key in TASKS}
    return TrainBatches(mixture.plan, data, Share(4, rank, world, accumulate), 0, 32, Augment())


def test_each_step_is_one_task_and_each_pass_every_sample_once(datasets) -> None:
    mixture = make(datasets)
    train = batches(mixture)
    # 12 samples at 4 a step: half a pass is 2 steps (rounded), a pass is 3
    assert mixture.plan.lengths == [2, 3] * 4
    seen: dict[str, list[str]] = {}
    for step in range(len(train)):
        batch = train[step]
        assert batch.task == mixture.plan.at(step).phase.task
        seen.setdefault(batch.task, []).extend(batch.keys)
    assert list(seen) == TASKS
    for task, keys in seen.items():
        everything = {f"train_{n:05d}" for n in range(12)}
        for start in range(0, len(keys) - 11, 12):
            assert set(keys[start : start + 12]) == everything, task


def test_the_global_batch_is_the_same_however_it_is_shared(datasets) -> None:
    mixture = make(datasets)
    whole = batches(mixture)
    for world, accumulate in ((2, 1), (1, 2), (2, 2), (4, 1)):
        shares = [batches(mixture, rank, world, accumulate) for rank in range(world)]
        for step in (0, 4, 17):
            parts = [
                share[step * accumulate + micro] for micro in range(accumulate) for share in shares
            ]
            assert [key for part in parts for key in part.keys] == whole[step].keys
            assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_sees_every_sample_once_on_any_number_of_ranks(datasets, world: int) -> None:
    mixture = make(datasets)
    tasks = [mixture.data(key, "val") for key in TASKS]
    seen: Counter[tuple[str, str]] = Counter()
    for rank in range(world):
        found = EvalBatches(tasks, 4, 32, rank, world)
        for item in range(len(found)):
            batch: Batch = found[item]
            assert batch.teacher_images is None
            seen.update((batch.task, key) for key in batch.keys)
    assert set(seen) == {(task, f"val_{n:05d}") for task in TASKS for n in range(6)}
    assert set(seen.values()) == {1}


def test_targets_are_of_the_tasks_kind_and_unknown_labels_are_marked(datasets) -> None:
    train = batches(make(datasets))
    found = {batch.task: batch for batch in (train[step] for step in range(0, 20, 5))}
    labels = found["tiny_findings/findings"].target
    assert labels.labels.shape == labels.known.shape == (4, 3)
    assert not labels.labels[~labels.known].any()
    organs = found["tiny_organs/organs"].target
    assert organs.masks.shape == (4, 3, 32, 32)
    assert organs.masks.dtype == torch.uint8
    boxes = found["tiny_boxes/boxes"].target
    assert len(boxes.boxes) == len(boxes.labels) == 4
    assert all(b[:, 2:].max() <= 32 and b.min() >= 0 for b in boxes.boxes if len(b))
    assert found["tiny_organs/diagnosis"].target.labels.dtype == torch.int64


def test_unknown_labels_come_through(datasets, tmp_path: Path) -> None:
    args = datasets[0].source["init_args"] | {"train": 40, "val": 1, "test": 1}
    source = {**datasets[0].source, "init_args": args}
    many = replace(datasets[0], shards=str(tmp_path / "many"), source=source)
    mixture = make([many])
    data = mixture.data(TASKS[0], "train")
    batch = EvalBatches([data], 40, 32, 0, 1)[0]
    stored = [data.reader.read(Address("train", 0, n), "findings").annotation for n in range(40)]
    unknown = torch.from_numpy(np.isnan(np.stack(stored)))
    assert unknown.any(), "no unknown label among the phantoms: the test proves nothing"
    assert torch.equal(batch.target.known, ~unknown)


def test_a_loader_begins_where_training_stands() -> None:
    step = 0
    sampler = FromStep(lambda: step, 5)
    assert list(sampler) == [0, 1, 2, 3, 4]
    step = 3
    assert list(sampler) == [3, 4]
    assert len(sampler) == 5


def test_samples_are_the_first_that_training_sees_without_augmentation(datasets) -> None:
    mixture = make(datasets, workers=0)
    key = TASKS[0]
    train = batches(mixture)
    first = [k for step in range(3) for k in train[step].keys]
    assert {train[step].task for step in range(3)} == {key}
    found = list(mixture.samples(key, 10))
    assert sorted(k for batch in found for k in batch.keys) == sorted(first[:10])
    everything = EvalBatches([mixture.data(key, "train")], 12, 32)[0]
    for batch in found:
        assert batch.teacher_images is None
        for k, image, labels in zip(batch.keys, batch.images, batch.target.labels, strict=True):
            place = everything.keys.index(k)
            assert torch.equal(image, everything.images[place])
            assert torch.equal(labels, everything.target.labels[place])
    assert sum(len(batch.keys) for batch in mixture.samples(key, 1000)) == 12
    assert [b.keys for b in mixture.samples(key, 10)] == [b.keys for b in found]


def test_only_drops_the_phases_of_other_tasks(datasets) -> None:
    phases = [Phase(task=task, steps=1) for task in TASKS]
    only = Mixture(datasets, CycleConfig(phases=phases), only=TASKS[1:2])
    assert [spec.key for spec in only.tasks] == TASKS[1:2]
    assert [phase.task for phase in only.plan.phases] == TASKS[1:2]


def test_a_split_without_samples_is_an_error(datasets) -> None:
    mixture = make(datasets)
    with pytest.raises(ConfigError, match="no split 'holdout'"):
        mixture.data(TASKS[0], "holdout")


@pytest.mark.parametrize(
    "augment",
    [
        Augment(0, 0, 0, 0, 0),
        Augment(0, 0, 0, brightness=0.4, gamma=40),
        Augment(20, 0.1, 0.2, 0, 0),
        Augment(20, 0.1, 0.2, 0.4, 40),
    ],
    ids=["still", "brightness", "geometry", "both"],
)
def test_a_batch_holds_the_views_of_its_samples(tmp_path: Path, augment: Augment) -> None:
    """Views are made in the batch's own memory where that can be; colour may follow gray."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 48, *c), np.uint8) for c in ((), (), (3,), (), (3,))]
    spec = AnnotationSpec("multiclass", ("a", "b"))
    samples = [
        SourceSample(f"k{n}", encode_png(image), (40, 48), {"label": "ab"[n % 2]})
        for n, image in enumerate(images)
    ]
    index = write_shards(ListSource({"label": spec}, train=samples), "x", tmp_path / "x")
    data = TaskData(TaskSpec("x", "label", "multiclass", spec.classes), ShardReader(index), "train")
    cycle = Cycle([Phase("x/label", steps=4)], [4], 1)
    found = TrainBatches(cycle, {"x/label": data}, Share(3), 0, 32, augment)
    transform = Transform("multiclass", 32, augment)
    channels = set()
    for step in range(4):
        batch = found[step]
        channels.add(batch.images.shape[1])
        for key, seed, student, teacher in zip(
            batch.keys, batch.seeds, batch.images, batch.teacher_images, strict=True
        ):
            pixels = np.atleast_3d(images[int(key[1:])])
            view = transform(pixels, 0, seed, (40, 48))
            for seen, expected in ((student, view.student), (teacher, view.teacher)):
                wide = np.broadcast_to(expected.transpose(2, 0, 1), seen.shape)
                np.testing.assert_array_equal(seen.numpy(), wide)
    assert channels == {1, 3} or channels == {3}
