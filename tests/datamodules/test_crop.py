"""Random crops against what the image shows, and against arithmetic done another way."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.annotations import Boxes, Masks
from datamodules.crop import WHOLE, Crop
from datamodules.transforms import Augment, Transform

CROP = Augment(0, 0, 0, 0, 0, crop=(0.3, 0.9))
RESIZED = Augment(0, 0, 0, 0, 0, crop=(0.3, 0.9), resize=256 / 224)
MOVED = Augment(10, 0.05, 0.1, 0, 0, flip=0.5, affine_p=0.5, crop=(0.5, 1), resize=256 / 224)
SIZE = 64
# (H, W) of the stored image and of its decoding
SIZES = [
    ((120, 96), (120, 96)),
    ((120, 96), (60, 48)),
    ((64, 64), (64, 64)),
    ((90, 160), (90, 160)),
]


def disc(centre: tuple[float, float], stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool, decoded from a stored image that shows a disc."""
    rows, columns = (np.mgrid[: size[0], : size[1]] + 0.5) * (stored[0] / size[0])
    return (rows - centre[1]) ** 2 + (columns - centre[0]) ** 2 < 14**2


def middle(weights: np.ndarray) -> list[float]:
    """(x, y) of the centre of brightness."""
    rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    total = weights.astype(float)
    return [float((total * columns).sum()), float((total * rows).sum())] / total.sum()


@pytest.mark.parametrize(("stored", "size"), SIZES, ids=str)
@pytest.mark.parametrize("augment", [CROP, RESIZED, MOVED], ids=["crop", "resized", "moved"])
def test_annotations_follow_the_crop(augment: Augment, stored, size) -> None:
    centre, compared = (0.45 * stored[1], 0.55 * stored[0]), 0
    image = disc(centre, stored, size)[..., None].astype(np.uint8) * 255
    mask = disc(centre, stored, stored).astype(np.uint8)[None]
    box = np.float32([[centre[0] - 14, centre[1] - 14, centre[0] + 14, centre[1] + 14]])
    for seed in range(25):
        view = Transform("segmentation", SIZE, augment)(
            image, Masks(mask, np.array([True])), seed, stored
        )
        bright = view.student[..., 0] > 127
        assert (bright ^ (view.annotation.masks[0] > 0)).mean() < 0.03
        rows, columns = np.nonzero(bright)
        if not len(rows) or min(rows.min(), columns.min()) == 0:
            continue  # cut by the view's edge
        if max(rows.max(), columns.max()) == SIZE - 1:
            continue
        compared += 1
        boxes = Transform("detection", SIZE, augment)(
            image, Boxes(box, np.array([3])), seed, stored
        )
        assert np.array_equal(boxes.student, view.student)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes.annotation.boxes[0], seen, atol=2.6)
        assert boxes.annotation.labels.tolist() == [3]
        points = Transform("points", SIZE, augment)(image, np.float32([centre]), seed, stored)
        np.testing.assert_allclose(points.annotation[0], middle(view.student[..., 0]), atol=0.7)
        np.testing.assert_allclose(points.annotation[0], middle(view.annotation.masks[0]), atol=0.7)
    assert compared >= 5


def drawn(augment: Augment, seed: int, stored: tuple[int, int]) -> np.ndarray:
    """(left, top, right, bottom) in shares of the image, from where known points went."""
    grid = (np.stack(np.meshgrid(*[np.arange(0.01, 1, 0.02)] * 2), -1).reshape(-1, 2)).astype("f4")
    image = np.zeros((*stored, 1), np.uint8)
    points = (grid * stored[::-1]).astype(np.float32)
    moved = Transform("points", SIZE, augment)(image, points, seed, stored).annotation
    seen = ~np.isnan(moved[:, 0])
    edges = []
    for axis in (0, 1):
        slope, offset = np.polyfit(moved[seen, axis], grid[seen, axis], 1)
        edges.append((offset, offset + slope * SIZE))
    return np.array(edges).T.ravel()


def test_a_crops_area_and_aspect_are_those_of_the_configuration() -> None:
    """Area uniform, aspect log-uniform, where every drawn crop fits: quantiles within 4 sigma."""
    count, augment = 400, Augment(0, 0, 0, 0, 0, crop=(0.1, 0.4), resize=8)
    crops = np.array([drawn(augment, seed, (60, 200)) for seed in range(count)])
    sides = crops[:, 2:] - crops[:, :2]
    area, aspect = sides.prod(axis=1), np.log(sides[:, 0] / sides[:, 1])
    assert (area > 0.098).all()
    assert (area < 0.402).all()
    assert (np.abs(aspect) < math.log(4 / 3) + 0.02).all()
    for values, low, high in ((area, 0.1, 0.4), (aspect, math.log(3 / 4), math.log(4 / 3))):
        for share in (0.25, 0.5, 0.75):
            below = (values < low + share * (high - low)).mean()
            assert below == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))
    free = 1 - sides  # where the crop lies in what it leaves free: uniform too
    place = crops[:, :2] / free
    assert place.mean(axis=0) == pytest.approx([0.5, 0.5], abs=4 * math.sqrt(1 / 12 / count))
    assert abs(np.corrcoef(place.T)[0, 1]) < 0.2


def test_without_a_resize_the_aspect_is_the_images_own() -> None:
    """As RandomResizedCrop of an image that was not made square: in pixels 3:4 to 4:3."""
    augment = Augment(0, 0, 0, 0, 0, crop=(0.05, 0.2))
    for seed in range(60):
        left, top, right, bottom = drawn(augment, seed, (300, 500))
        aspect = (right - left) * 500 / ((bottom - top) * 300)
        assert 0.73 < aspect < 1.37


def test_everything_is_drawn_from_the_seed_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 1), np.uint8)
    augment = Augment(crop=(0.1, 1), resize=1.2, affine_p=0.5, one_of=0.5, flip=0.5)
    transform, found = Transform("multilabel", 32, augment), []
    for seed in (5, 6, 7, 5):
        random.seed(len(found))
        np.random.seed(len(found))
        torch.manual_seed(len(found))
        before = random.getstate(), np.random.get_state()[1].tolist()
        found.append(transform(image, None, seed, (80, 100)))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    fresh = Transform("multilabel", 32, augment)(image, None, 5, (80, 100))
    for view in (found[3], fresh):
        assert np.array_equal(view.student, found[0].student)
        assert np.array_equal(view.teacher, found[0].teacher)
    assert not np.array_equal(found[0].teacher, found[1].teacher)


def test_the_crop_leaves_what_else_is_drawn_as_it_was() -> None:
    """Crop, geometry and brightness are drawn apart: an ablation of one keeps the others."""
    image = np.full((64, 64, 1), 90, np.uint8)
    for seed in range(20):
        plain, cropped = (
            Transform("multilabel", 64, augment)(image, None, seed, (64, 64))
            for augment in (Augment(0, 0, 0, flip=0.5), Augment(0, 0, 0, flip=0.5, crop=(0.2, 0.5)))
        )
        assert np.array_equal(plain.student, cropped.student)


def test_an_image_without_boxes_or_with_all_of_them_cut_away() -> None:
    empty = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    corner = Boxes(np.float32([[0, 0, 2, 2]]), np.array([1]), np.array([True, False]))
    image, gone = np.zeros((100, 100, 1), np.uint8), 0
    for seed in range(20):
        transform = Transform("detection", 32, CROP)
        for annotation in (empty, corner):
            boxes, labels, known = transform(image, annotation, seed, (100, 100)).annotation
            assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
            assert boxes.shape == (len(labels), 4)
            assert known is annotation.known
        gone += not len(labels)
    assert gone > 10


SHARES = st.integers(0, 60).flatmap(lambda low: st.tuples(st.just(low), st.integers(low + 20, 80)))


@settings(max_examples=200, deadline=None)
@given(
    across=SHARES,
    down=SHARES,
    sides=st.lists(
        st.tuples(
            *[st.integers(0, 39), st.integers(0, 29), st.integers(1, 40), st.integers(1, 30)]
        ),
        max_size=5,
    ),
)
def test_boxes_are_clipped_and_dropped_as_exact_arithmetic_says(across, down, sides) -> None:
    stored, size = (30, 40), 50
    boxes = [(x, y, min(x + w, 40), min(y + h, 30)) for x, y, w, h in sides]
    crop = Crop(across[0] / 80, down[0] / 80, across[1] / 80, down[1] / 80)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    given_boxes = Boxes(array, np.arange(len(boxes)))
    found = crop.place("detection", given_boxes, stored, size)
    expected, unsure = {}, set()
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        mine = []
        for low, high, edge, pixels in ((x1, x2, across, 40), (y1, y2, down, 30)):
            start, end = (Fraction(value, 80) * pixels for value in edge)
            place = [(value - start) / (end - start) * size for value in (low, high)]
            mine.append([min(max(value, Fraction(0)), Fraction(size)) for value in place])
        (left, right), (top, bottom) = mine
        width, height = (Fraction(edge[1] - edge[0], 80) for edge in (across, down))
        whole = Fraction((x2 - x1) * (y2 - y1), 1200) * size**2 / (width * height)
        share = (right - left) * (bottom - top) / whole
        if abs(share - Fraction(1, 10)) < Fraction(1, 10**4):
            unsure.add(number)  # rounding may decide
        elif share > Fraction(1, 10):
            expected[number] = [float(value) for value in (left, top, right, bottom)]
    kept = {
        int(n): box for n, box in zip(found.labels, found.boxes, strict=True) if n not in unsure
    }
    assert list(kept) == list(expected)
    for number, box in expected.items():
        np.testing.assert_allclose(kept[number], box, atol=1e-3)


@pytest.mark.parametrize("size", [16, 50, 64])
def test_masks_of_a_crop_are_the_nearest_pixels(size: int) -> None:
    rng = np.random.default_rng(size)
    stack = rng.integers(0, 4, (2, 40, 60), np.uint8)
    crop = Crop(0.125, 0.25, 0.875, 0.75)
    masks = Masks(stack, np.array([True, False]), np.uint8([3, 3]))
    shown, known, raters = crop.place("segmentation", masks, (40, 60), size)
    assert shown.shape == (2, size, size)
    assert shown.dtype == np.uint8
    for row in range(size):
        for column in range(size):
            y = math.floor(10 + (row + 0.5) / size * 20)
            x = math.floor(7.5 + (column + 0.5) / size * 45)
            assert (shown[:, row, column] == stack[:, y, x]).all()
    assert (known.tolist(), raters.tolist()) == ([True, False], [3, 3])


def test_the_whole_image_as_a_crop_is_no_crop() -> None:
    stack = np.random.default_rng(0).integers(0, 4, (1, 37, 53), np.uint8)
    masks = Masks(stack, np.array([True]))
    almost = Crop(0.0, 0.0, 1.0, 1 - 1e-12)
    whole, cropped = (c.place("segmentation", masks, (37, 53), 40).masks for c in (WHOLE, almost))
    np.testing.assert_array_equal(whole, cropped)


def test_points_outside_the_crop_are_unknown() -> None:
    points = np.float32([[10, 10], [39, 10], [np.nan, np.nan], [20, 29], [20, 15]])
    placed = Crop(0.25, 0.0, 0.75, 0.5).place("points", points, (30, 40), 60)
    nan = [np.nan, np.nan]
    np.testing.assert_allclose(placed, [[0, 40], nan, nan, nan, [30, 60]])
    assert placed.dtype == np.float32
    assert points[1].tolist() == [39, 10], "the stored annotation was changed"
