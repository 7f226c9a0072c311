from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datamodules.annotations import Boxes, Masks
from datamodules.transforms import Augment, Transform, View

STRONG = Augment(rotate=20, shift=0.1, scale=0.2, brightness=0.4, gamma=40, flip=0.5)


def see(transform: Transform, image: np.ndarray, annotation: Any, seed: int) -> View:
    """The views as (C, S, S) tensors."""
    view = transform(image, annotation, seed, image.shape[:2])
    views = (view.student, view.teacher)
    student, teacher = (None if v is None else torch.from_numpy(v).permute(2, 0, 1) for v in views)
    return View(student, teacher, view.annotation)


@pytest.fixture
def blob() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image, mask, box) of one bright rectangle, 100 x 80 pixels."""
    image = np.zeros((100, 80, 3), np.uint8)
    image[30:60, 20:50] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    return image, mask, np.array([[20, 30, 50, 60]], np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_masks_and_boxes_move_with_the_image(seed: int, blob) -> None:
    image, mask, box = blob
    views = see(
        Transform("segmentation", 64, STRONG), image, Masks(mask[None], np.array([True])), seed
    )
    bright = views.teacher[0] > 127
    moved = torch.from_numpy(views.annotation[0][0]) > 0
    assert (bright ^ moved).float().mean() < 0.02
    views = see(Transform("detection", 64, STRONG), image, Boxes(box, np.array([2])), seed)
    boxes, labels, _ = views.annotation
    rows, columns = torch.nonzero(views.teacher[0] > 127, as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert labels.tolist() == [2]
    np.testing.assert_allclose(boxes[0], seen, atol=4.5)  # its corners lie outside its ellipse


@pytest.mark.parametrize(("source", "size"), [(1024, 160), (512, 224), (192, 160), (96, 160)])
def test_resized_masks_lie_on_the_image(source: int, size: int) -> None:
    rows, columns = np.mgrid[:source, :source] / source
    disc = ((rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.06).astype(np.uint8)
    image = np.repeat(disc[..., None] * 255, 3, axis=2)
    view = see(Transform("segmentation", size, None), image, Masks(disc[None], np.array([True])), 0)

    def centre(weights: torch.Tensor) -> list[float]:
        grid = torch.arange(size) + 0.5
        total = weights.sum()
        return [float((weights.sum(1) @ grid) / total), float((weights.sum(0) @ grid) / total)]

    mask = torch.from_numpy(view.annotation[0][0]).float()
    assert centre(mask) == pytest.approx(centre(view.student[0].float()), abs=0.12)


def test_boxes_stay_as_tight_as_what_they_hold() -> None:
    """Organs are round: the box of a rotated box would be a seventh wider than the organ."""
    rows, columns = np.mgrid[:128, :128]
    lung = ((rows - 64) / 40) ** 2 + ((columns - 64) / 16) ** 2 < 1
    image = np.repeat(lung[..., None].astype(np.uint8) * 255, 3, axis=2)
    box = np.array([[48, 24, 80.0, 104]], np.float32)
    transform, ratios = Transform("detection", 128, Augment()), []
    for seed in range(40):
        view = see(transform, image, Boxes(box, np.array([0])), seed)
        seen = torch.nonzero((view.teacher[0] > 127).any(0)).flatten()
        x1, _, x2, _ = view.annotation[0][0]
        ratios.append((x2 - x1) / float(seen[-1] + 1 - seen[0]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


def test_brightness_does_not_depend_on_the_geometry() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    image[8:24, 8:24] = 200
    transform = Transform("multilabel", 32, Augment())
    changed, shifts = [], []
    for seed in range(300):
        view = see(transform, image, None, seed)
        changed.append(not torch.equal(view.student, view.teacher))
        bright = view.teacher[0].float() > 150
        shifts.append(float((bright.float().sum(0) @ torch.arange(32.0)) / bright.sum()))
    assert abs(np.corrcoef(changed, shifts)[0, 1]) < 0.2


def test_the_same_seed_gives_the_same_view_and_others_do_not(blob) -> None:
    image, _, _ = blob
    transform = Transform("multilabel", 48, STRONG)
    views = [see(transform, image, None, seed).student for seed in (1, 2, 1)]
    fresh = see(Transform("multilabel", 48, STRONG), image, None, 1).student
    assert torch.equal(views[0], views[2])
    assert torch.equal(views[0], fresh)
    assert not torch.equal(views[0], views[1])


def test_the_teacher_sees_the_students_geometry_without_its_brightness() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    image[20:40, 10:30] = 180
    transform = Transform("multiclass", 64, Augment(brightness=0.4, gamma=40))
    changed = 0
    for seed in range(10):
        view = see(transform, image, 0, seed)
        teacher = view.teacher.float().flatten()
        student = view.student.float().flatten()
        # one curve maps every gray value of the teacher's view to the student's
        for value in teacher.unique():
            assert student[teacher == value].unique().numel() == 1
        changed += not torch.equal(teacher, student)
    assert changed > 3


def test_evaluation_only_resizes(blob) -> None:
    image, _, box = blob
    transform = Transform("detection", 50, None)
    view = see(transform, image, Boxes(box, np.array([0])), 5)
    assert view.teacher is None
    np.testing.assert_allclose(view.annotation[0], [[12.5, 15, 31.25, 30]], atol=1e-4)
    assert view.student.shape == (3, 50, 50)
    assert view.student.dtype == torch.uint8


def test_an_image_without_boxes_stays_one() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    empty = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    boxes, labels, _ = see(Transform("detection", 32, Augment()), image, empty, 0).annotation
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_no_augmentation_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 32, 3), np.uint8)
    view = see(Transform("multilabel", 32, Augment(0, 0, 0, 0, 0)), image, None, 3)
    assert torch.equal(view.student, torch.from_numpy(image.transpose(2, 0, 1)))
    assert torch.equal(view.student, view.teacher)


@pytest.mark.parametrize("kind", ["multilabel", "detection", "segmentation"])
def test_gray_images_stay_gray_and_move_as_colour_ones_do(kind: str, blob) -> None:
    image, mask, box = blob
    annotation = {
        "multilabel": np.zeros(2, np.float32),
        "detection": Boxes(box, np.array([0])),
        "segmentation": Masks(mask[None], np.array([True])),
    }[kind]
    transform = Transform(kind, 64, STRONG)
    gray = see(transform, np.ascontiguousarray(image[..., :1]), annotation, 3)
    colour = see(transform, image, annotation, 3)
    assert gray.student.shape == gray.teacher.shape == (1, 64, 64)
    assert torch.equal(gray.teacher.expand(3, -1, -1), colour.teacher)


def test_a_smaller_decoding_gives_the_same_annotation(blob) -> None:
    """A JPEG may be decoded at half its size; boxes and masks are in pixels of the whole."""
    image, mask, box = blob
    half = np.ascontiguousarray(image[::2, ::2])
    for kind, annotation in (
        ("detection", Boxes(box, np.array([0]))),
        ("segmentation", Masks(mask[None], np.array([True]))),
    ):
        transform = Transform(kind, 32, STRONG)
        whole, less = (transform(i, annotation, 3, (100, 80)) for i in (image, half))
        np.testing.assert_array_equal(whole.annotation[0], less.annotation[0])
        assert np.abs(whole.teacher.astype(int) - less.teacher).mean() < 8
