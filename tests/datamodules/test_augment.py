"""What the views' options mean: how often each part acts, and what the teacher sees."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from commands import DATASETS, TASKS, ark, write_recipe

from ark.cycle import Phase
from ark.planning import CycleConfig
from ark.types import ConfigError, TaskSpec
from datamodules.augment import Augment, AugmentChange, choose_augments
from datamodules.collate import BatchBuilder
from datamodules.config import DatasetConfig, load_datasets
from datamodules.mixture import Mixture
from datamodules.stream import EvalBatches, Share, TrainBatches
from datamodules.transforms import Transform, View

STILL = {"rotate": 0, "shift": 0, "scale": 0, "brightness": 0, "gamma": 0}
# of spec ark.md, "student view"; foundation_x.md, "Data"
ARK = Augment(10, 0.0625, 0.1, affine_p=0.5, one_of=0.3, crop=(0.08, 1), resize=256 / 224)
X_CLASSES = Augment(7, 0, 0, 0, 0, flip=0.5, crop=(0.08, 1))
RUNS = 2000


def near(count: int, share: float, runs: int = RUNS) -> bool:
    """Within 4 sigma of a binomial."""
    return abs(count - runs * share) < 4 * math.sqrt(runs * share * (1 - share))


def noise(height: int, width: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def views(augment: Augment, image: np.ndarray, runs: int, size: int = 16) -> list[View]:
    transform = Transform("multilabel", size, augment)
    return [transform(image, None, seed, image.shape[:2]) for seed in range(runs)]


# -- how often ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_how_often_an_image_is_rotated_shifted_and_scaled(share: float) -> None:
    image = noise(16, 16)
    augment = Augment(40, 0.3, 0.3, 0, 0, affine_p=share)
    moved = sum(not np.array_equal(v.student, image) for v in views(augment, image, RUNS))
    assert near(moved, share)


def test_how_often_an_image_is_mirrored_and_not_because_it_was_moved() -> None:
    image = np.zeros((16, 16, 1), np.uint8)
    image[:, :6] = 200
    augment = Augment(0, 0, 0.01, 0, 0, flip=0.3, affine_p=0.5)
    found = views(augment, image, RUNS)
    mirrored = np.array([v.student[8, 14, 0] > 100 for v in found])
    changed = np.array(
        [
            not np.array_equal(v.student[:, :: -1 if m else 1], image)
            for v, m in zip(found, mirrored, strict=True)
        ]
    )
    assert near(mirrored.sum(), 0.3)
    assert near(changed.sum(), 0.5)
    assert near((mirrored & changed).sum(), 0.15)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_flip_does_not_tell_how_the_image_was_moved(share: float) -> None:
    """albumentations seeds all steps alike: the first number of one would decide the other."""
    grid = np.float32([[x, y] for x in (16, 24, 32, 40, 48) for y in (16, 32, 48)])
    transform = Transform("points", 64, Augment(20, 0.1, 0.2, 0, 0, flip=0.5, affine_p=share))
    alone = Transform("points", 64, Augment(**STILL, flip=0.5))
    image, rows = np.zeros((64, 64, 1), np.uint8), []
    for seed in range(800):
        moved = transform(image, grid, seed, (64, 64)).annotation
        design = np.c_[grid, np.ones(len(grid))]
        (matrix, *_) = np.linalg.lstsq(design, moved, rcond=None)
        mirrored = np.linalg.det(matrix[:2]) < 0
        still = alone(image, grid, seed, (64, 64)).annotation
        assert mirrored == (still[0, 0] != 16), "flips changed where nothing else is moved"
        if mirrored:
            matrix[:, 0] = [0, 0, 64] - matrix[:, 0]
        rows.append([mirrored, *matrix.ravel()])
    found = np.corrcoef(np.array(rows, float).T)[0, 1:]
    assert np.abs(found).max() < 4 / math.sqrt(len(rows))


def test_how_much_brightness_changes_does_not_depend_on_the_choice_to_change_it() -> None:
    image = np.full((8, 8, 1), 120, np.uint8)
    augment = Augment(0, 0, 0, brightness=0.3, gamma=40, one_of=0.3)
    values = np.array([float(v.student[0, 0, 0]) for v in views(augment, image, RUNS)])
    changed = values[values != 120]
    assert near((changed > 120).sum(), 0.5, len(changed))


def by_gamma(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether one power explains the change."""
    before, after = before / 255, after / 255
    power = np.log(after[3]) / np.log(before[3])
    return bool(np.abs(before**power - after).max() < 1.5 / 255)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_how_often_brightness_or_gamma_change_and_never_both(share: float) -> None:
    ramp = np.arange(80, 171, 10, dtype=np.uint8)  # nothing is cut off at 0 or 255
    image = np.repeat(ramp, 8)[None, :, None].repeat(8, axis=0)
    augment = Augment(0, 0, 0, brightness=0.2, gamma=40, one_of=share)
    pairs = [(v.teacher[0, ::8, 0], v.student[0, ::8, 0]) for v in views(augment, image, RUNS, 72)]
    changed = [pair for pair in pairs if not np.array_equal(*pair)]
    assert abs(len(changed) - share * RUNS) < 4 * math.sqrt(RUNS * share * (1 - share)) + RUNS / 50
    powers = sum(by_gamma(*pair) for pair in changed)
    assert abs(powers - len(changed) / 2) < 4 * math.sqrt(len(changed)) / 2 + len(changed) / 40
    for before, after in changed:  # the other is a line: contrast and brightness
        line = np.polyval(np.polyfit(before, after.astype(float), 1), before)
        assert by_gamma(before, after) or np.abs(line - after).max() < 1


def test_one_of_two_parts_of_which_one_is_off_is_the_other() -> None:
    image = noise(16, 16)
    for part in ({"gamma": 0}, {"brightness": 0}):
        augment = Augment(0, 0, 0, **part, one_of=0.3)
        found = views(augment, image, RUNS)
        changed = sum(not np.array_equal(v.student, v.teacher) for v in found)
        assert abs(changed - 0.3 * RUNS) < 4 * math.sqrt(0.21 * RUNS) + RUNS / 50


# -- student and teacher --------------------------------------------------------------------


@pytest.mark.parametrize("augment", [Augment(), ARK, X_CLASSES], ids=["default", "ark", "x"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_teacher_sees(augment: Augment, channels: int) -> None:
    image = noise(90, 70, channels)
    image[20:60, 20:50] //= 3
    whole = Transform("multilabel", 48, None)(image, None, 0, (90, 70)).student
    found = {
        name: views(Augment(**{**vars(augment), "teacher_view": name}), image, 12, 48)
        for name in ("geometry", "whole", "same")
    }
    moved = coloured = 0
    for geometry, wide, same in zip(*found.values(), strict=True):
        assert geometry.student.shape == geometry.teacher.shape == (48, 48, channels)
        assert np.array_equal(wide.student, geometry.student), "the option changed the student"
        assert np.array_equal(same.student, geometry.student), "the option changed the student"
        assert np.array_equal(same.teacher, same.student)
        assert np.array_equal(wide.teacher, whole)
        # one curve maps every gray value of the teacher's view to the student's
        for value in np.unique(geometry.teacher):
            assert len(np.unique(geometry.student[geometry.teacher == value])) == 1
        moved += not np.array_equal(geometry.teacher, whole)
        coloured += not np.array_equal(geometry.teacher, geometry.student)
    assert moved == 12
    assert coloured == 0 if augment is X_CLASSES else 0 < coloured < 12


def test_the_resize_before_the_crop_decides_how_sharp_the_view_is() -> None:
    """All crops of 256/224 come from R x R pixels; others from what was decoded."""
    image = noise(400, 400)
    small = Transform("multilabel", 100, Augment(**STILL, crop=(0.25, 0.26), resize=1.28))
    sharp = Transform("multilabel", 100, Augment(**STILL, crop=(0.25, 0.26)))
    assert (small.reads, sharp.reads) == (128, 100)
    contrast = [t(image, None, 1, (400, 400)).student.std() for t in (small, sharp)]
    assert contrast[1] > 1.5 * contrast[0]
    once = Transform("multilabel", 128, None)(image, None, 0, (400, 400)).student
    for seed in range(5):
        twice = small(once, None, seed, (400, 400)).student
        assert np.array_equal(twice, small(image, None, seed, (400, 400)).student)


# -- in batches -----------------------------------------------------------------------------

OPTIONS: dict[str, Augment] = {
    "ark": ARK,
    "ark plus": Augment(**{**vars(ARK), "teacher_view": "whole"}),
    "x": X_CLASSES,
    "crop": Augment(**STILL, crop=(0.3, 0.6)),
    "crop, whole": Augment(**STILL, crop=(0.3, 0.6), teacher_view="whole"),
    "flip": Augment(**STILL, flip=0.5),
    "flip, whole": Augment(**STILL, flip=0.5, teacher_view="whole"),
    "brightness, whole": Augment(0, 0, 0, 0.4, 40, teacher_view="whole"),
    "rarely moved, whole": Augment(10, 0.1, 0.1, 0, 0, affine_p=0.3, teacher_view="whole"),
    "same": Augment(flip=0.5, one_of=0.5, teacher_view="same"),
    "still, whole": Augment(**STILL, teacher_view="whole"),
    "still, same": Augment(**STILL, teacher_view="same"),
}

ONE_VIEW = {"x", "crop", "flip", "same", "still, whole", "still, same"}


class Reader:
    """Gives a sample's image as it is."""

    def decode(self, sample: Any, size: int) -> np.ndarray:
        return sample.image.copy()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("order", ["gray", "gray then colour", "colour then gray"])
@pytest.mark.parametrize("side", [32, 45])
def test_views_made_in_the_batchs_own_memory(name: str, order: str, side: int) -> None:
    channels = {"gray": [1] * 6, "gray then colour": [1, 1, 3, 1], "colour then gray": [3, 1, 1, 3]}
    transform = Transform("multilabel", 32, OPTIONS[name])
    builder, expected = BatchBuilder(transform, 6), []
    for seed, depth in enumerate(channels[order]):
        image = np.random.default_rng(seed).integers(0, 256, (side, side, depth), np.uint8)
        labels = np.float32([seed % 2])
        sample = SimpleNamespace(image=image, annotation=labels, size=(side, side), key=str(seed))
        builder.add(sample, Reader(), seed)
        expected.append(transform(image, labels, seed, (side, side)))
    batch = builder.batch("x/label", list(range(len(expected))))
    assert batch.images.shape[1] == max(channels[order]), "gray images alone stay gray"
    shared = batch.teacher_images.data_ptr() == batch.images.data_ptr()
    assert shared == (name in ONE_VIEW), "two equal views take the memory of one"
    for row, view in enumerate(expected):
        for found, alone in ((batch.images, view.student), (batch.teacher_images, view.teacher)):
            wide = np.broadcast_to(alone.transpose(2, 0, 1), found[row].shape)
            np.testing.assert_array_equal(found[row].numpy(), wide)


# -- of which task --------------------------------------------------------------------------


def test_a_change_may_name_every_field() -> None:
    assert get_type_hints(AugmentChange) == get_type_hints(Augment)


def test_a_tasks_own_changes_go_before_its_kinds() -> None:
    specs = {
        key: TaskSpec(*key.split("/"), kind, ("a", "b"))
        for key, kind in {
            "x/cls": "multilabel",
            "y/cls": "multilabel",
            "x/box": "detection",
        }.items()
    }
    chosen = choose_augments(
        specs,
        Augment(rotate=3, gamma=7),
        {"multilabel": {"flip": 0.5, "rotate": 4}, "y/cls": {"rotate": 5}},
    )
    assert chosen == {
        "x/cls": Augment(rotate=4, gamma=7, flip=0.5),
        "y/cls": Augment(rotate=5, gamma=7, flip=0.5),
        "x/box": Augment(rotate=3, gamma=7),
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetConfig]:
    folder = tmp_path_factory.mktemp("augment")
    write_recipe(folder)
    return load_datasets([str(folder / f"{name}.yaml") for name in DATASETS])


def make(datasets: list[DatasetConfig], **options: Any) -> Mixture:
    cycle = CycleConfig(cycles=2, each=[Phase(steps=1)])
    return Mixture(datasets, cycle, batch_size=4, image_size=32, workers=0, **options)


# of spec foundation_x.md, "Data"
FOUNDATION_X: dict[str, AugmentChange] = {
    "multilabel": {**STILL, "rotate": 7, "flip": 0.5, "crop": (0.08, 1)},
    "multiclass": {**STILL, "rotate": 7, "flip": 0.5, "crop": (0.08, 1)},
    "detection": {**STILL, "flip": 0.5},
    "segmentation": {"rotate": 10, "gamma": 0},
}


def test_each_task_of_a_run_gets_its_own_views(datasets) -> None:
    mixture = make(datasets, augments=FOUNDATION_X)
    data = {key: mixture.data(key, "train") for key in TASKS}
    train = TrainBatches(mixture.plan, data, Share(4), 0, 32, mixture.augments)
    for step, key in enumerate(TASKS):
        expected = Augment(**FOUNDATION_X[data[key].spec.kind])
        alone = TrainBatches(mixture.plan, data, Share(4), 0, 32, expected)
        assert train[step].task == key
        assert torch.equal(train[step].images, alone[step].images)
        assert torch.equal(train[step].teacher_images, alone[step].teacher_images)
        others = TrainBatches(mixture.plan, data, Share(4), 0, 32, Augment())
        assert not torch.equal(train[step].images, others[step].images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augments": {"boxes": {"flip": 0.5}}}, r"'boxes' is neither .* kinds: \['multilabel'"),
        ({"augments": {"x/y": {}}}, r"'x/y' is neither .*tasks: \['tiny_findings/findings'"),
        (
            {"augments": {"detection": {"crop": (0.5, 0.2)}}},
            r"task tiny_boxes/boxes: augment.crop: \[0.5, 0.2\]; expected",
        ),
        (
            {"augment": Augment(teacher_view="whole")},
            r"task tiny_boxes/boxes: teacher_view is 'whole'.*--data.augments.detection='{teach",
        ),
        ({"ten_crop": 1.0}, r"data.ten_crop: 1.0; expected R / C in \(1, 8\]"),
    ],
)
def test_views_that_cannot_be(datasets, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(datasets, **options)


def test_a_whole_teacher_view_for_the_classes_only(datasets) -> None:
    """Ark+ beside detection and segmentation: the fix that the error names."""
    augments = {kind: {"teacher_view": "geometry"} for kind in ("detection", "segmentation")}
    mixture = make(datasets, augment=Augment(teacher_view="whole"), augments=augments)
    found = [augment.teacher_view for augment in mixture.augments.values()]
    assert found == ["whole", "geometry", "geometry", "whole"]
    make(datasets, augment=Augment(teacher_view="whole"), only=[TASKS[0]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": 1.5}, "augment.flip: 1.5"),
        ({"scale": 1}, "augment.scale: 1"),
        ({"gamma": 100}, "augment.gamma: 100"),
        ({"rotate": -5}, "augment.rotate: -5"),
        ({"crop": (0, 1)}, r"augment.crop: \[0, 1\]"),
        ({"crop": (0.1, 1), "resize": 0.5}, "augment.resize: 0.5"),
        ({"resize": 1.143}, "augment.resize: 1.143 changes nothing where crop"),
        ({**STILL, "one_of": 0.3}, "augment.one_of: 0.3 changes nothing where brightness"),
        ({**STILL, "affine_p": 0.5}, "affine_p: 0.5 changes nothing .* leave it at 1.0"),
    ],
)
def test_numbers_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment(**fields)


# -- resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"augment": Augment(flip=0.5)},
        {"augment": Augment(crop=(0.5, 1))},
        {"augments": {"detection": {"flip": 0.5}}},
        {"augments": {TASKS[0]: {"teacher_view": "whole"}}},
        {"augments": {TASKS[0]: {"crop": (0.5, 1), "resize": 1.2}}},
    ],
)
def test_a_run_with_other_views_is_not_resumed(datasets, other: dict[str, Any]) -> None:
    saved = make(datasets).state_dict()
    same, changed = make(datasets, augments={"detection": {}}), make(datasets, **other)
    for mixture in (same, changed):
        mixture.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    same.load_state_dict(saved)
    with pytest.raises(ConfigError, match="had augment of tiny_"):
        changed.load_state_dict(saved)


def test_how_a_task_is_changed_does_not_matter_for_a_resume(datasets) -> None:
    by_kind = make(datasets, augments={"detection": {"flip": 0.5}})
    by_key = make(datasets, augments={"tiny_boxes/boxes": {"flip": 0.5}})
    assert by_kind.state_dict() == by_key.state_dict()


# -- evaluation -----------------------------------------------------------------------------


def test_images_for_ten_crops_are_larger_where_classes_are_scored(datasets) -> None:
    mixture = make(datasets)
    tasks = [mixture.data(key, "test") for key in TASKS]
    batches = EvalBatches(tasks, 6, 32, ten_crop=256 / 224)
    sides = {}
    for n in range(len(batches)):
        batch = batches[n]
        sides[batch.task] = batch.images.shape[-1]
        usual = EvalBatches(tasks, 6, round(32 * 256 / 224))[n]
        if sides[batch.task] == 37:
            assert torch.equal(batch.images, usual.images)
    assert sides == dict(zip(TASKS, (37, 32, 32, 37), strict=True))


def test_only_the_test_split_is_for_ten_crops(datasets) -> None:
    mixture = make(datasets, ten_crop=2.0)
    mixture.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    for loader, side in ((mixture.val_dataloader(), 32), (mixture.test_dataloader(), 64)):
        assert next(iter(loader)).images.shape[-1] == side


# -- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.augments={detection: {flop: 0.5}}", "Unexpected keys: {'flop'}"),
        ("--data.augments={detection: {flip: often}}", "Expected a <class 'float'>"),
        ("--data.augments={detection: {crop: [0.1]}}", "Expected a tuple with 2 elements"),
        ("--data.augments={boxes: {flip: 0.5}}", "data.augments: 'boxes' is neither"),
        ("--data.augment.teacher_view=whole", "task tiny_boxes/boxes: teacher_view is 'whole'"),
        ("--data.augment.teacher_view=all", "data.augment"),
        ("--data.augment.flip=2", "augment.flip: 2"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(
    tmp_path: Path, option: str, message: str, capsys
) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(SystemExit):
        ark("fit", "--config", recipe, option)
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert message in said


def test_a_published_recipe_is_written_as_yaml(tmp_path: Path) -> None:
    """Foundation X's views, given by kind, are what the run's own config.yaml says."""
    recipe = write_recipe(tmp_path)
    content = yaml.safe_load(recipe.read_text())
    content["data"]["augments"] = {
        kind: {**change, "crop": list(change.get("crop", (1.0, 1.0)))}
        for kind, change in FOUNDATION_X.items()
    }
    recipe.write_text(yaml.safe_dump(content))
    ark("fit", "--config", recipe, "--run.baseline=false", "--trainer.max_steps=1")
    written = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert written["data"]["augments"] == content["data"]["augments"]
