"""Points and counts of raters through resizing and augmentation, against what the image shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.annotations import Boxes, Masks
from datamodules.transforms import Augment, Transform

GEOMETRY = Augment(rotate=20, shift=0.1, scale=0.2, brightness=0, gamma=0, flip=0.5)
STILL = Augment(0, 0, 0, 0, 0)


def spot(x: float, y: float, size: tuple[int, int]) -> np.ndarray:
    """A bright Gaussian whose middle is at (x, y), where (0.5, 0.5) is the first pixel's middle."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    bright = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 4.0**2))
    return (bright * 255).astype(np.uint8)[..., None]


def middle(image: np.ndarray) -> list[float]:
    """(x, y) of the centre of brightness."""
    weights = image[..., 0].astype(float)
    rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return [float((weights * columns).sum()), float((weights * rows).sum())] / weights.sum()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("stored", [(120, 96), (64, 64)])
def test_points_lie_where_the_image_shows_them(seed: int, stored: tuple[int, int]) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.uniform(0.4, 0.6, 2) * stored[::-1]
    points = np.float32([[x, y], [np.nan, np.nan]])
    view = Transform("points", 64, GEOMETRY)(spot(x, y, stored), points, seed, stored)
    np.testing.assert_allclose(view.annotation[0], middle(view.student), atol=0.15)
    assert np.isnan(view.annotation[1]).all()
    assert view.annotation.dtype == np.float32


def test_evaluation_resizes_points_with_the_image() -> None:
    points = np.float32([[10, 20], [np.nan, np.nan], [96, 120]])
    view = Transform("points", 48, None)(spot(10, 20, (120, 96)), points, 0, (120, 96))
    np.testing.assert_allclose(view.annotation, [[5, 8], [np.nan, np.nan], [48, 48]], rtol=1e-6)


def test_a_smaller_decoding_gives_the_same_points() -> None:
    points = np.float32([[10, 20]])
    whole, half = (
        Transform("points", 32, GEOMETRY)(spot(10, 20, size), points, 3, (120, 96)).annotation
        for size in ((120, 96), (60, 48))
    )
    np.testing.assert_array_equal(whole, half)


def test_a_flip_moves_points_and_keeps_their_names() -> None:
    flip = Augment(0, 0, 0, 0, 0, flip=1.0)
    points = np.float32([[10, 20], [0, 0], [64, 64], [63.5, 0.5]])
    view = Transform("points", 64, flip)(np.zeros((64, 64, 1), np.uint8), points, 0, (64, 64))
    np.testing.assert_allclose(view.annotation, [[54, 20], [64, 0], [0, 64], [0.5, 0.5]])


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(
        st.tuples(st.floats(0, 50, width=32), st.floats(0, 40, width=32)) | st.none(),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**62),
)
def test_points_that_leave_the_view_are_unknown_and_none_is_made_up(points, seed: int) -> None:
    given_points = np.float32([(np.nan, np.nan) if p is None else p for p in points])
    far = Augment(rotate=45, shift=0.5, scale=0.3, brightness=0, gamma=0, flip=0.5)
    transform, image = Transform("points", 32, far), np.zeros((40, 50, 1), np.uint8)
    moved = transform(image, given_points, seed, (40, 50)).annotation
    assert moved.shape == given_points.shape
    known = ~np.isnan(moved).any(axis=1)
    assert not (known & np.isnan(given_points[:, 0])).any()
    assert (moved[known] >= 0).all()
    assert (moved[known] <= 32).all()
    # the same geometry for each: alone a point moves as it does among the others
    for k, point in enumerate(given_points):
        alone = transform(image, point[None], seed, (40, 50)).annotation
        np.testing.assert_allclose(alone[0], moved[k], atol=1e-4)


def test_an_image_without_a_known_point() -> None:
    nothing = np.full((3, 2), np.nan, np.float32)
    view = Transform("points", 32, GEOMETRY)(np.zeros((40, 40, 1), np.uint8), nothing, 1, (40, 40))
    np.testing.assert_array_equal(view.annotation, nothing)


@pytest.mark.parametrize("augment", [None, STILL, GEOMETRY])
def test_counts_of_raters_are_never_mixed(augment: Augment | None) -> None:
    """Resizing 0 and 3 to a mean of 1 or 2 would invent raters."""
    stack = np.zeros((2, 80, 100), np.uint8)
    stack[0, 20:60, 30:70] = 3
    stack[1, 10:50, 10:50] = 200
    raters = np.uint8([3, 255])
    for seed in range(6):
        view = Transform("segmentation", 64, augment)(
            np.zeros((80, 100, 1), np.uint8),
            Masks(stack, np.array([True, True]), raters),
            seed,
            (80, 100),
        )
        masks, known, carried = view.annotation
        assert set(np.unique(masks[0])) == {0, 3}
        assert set(np.unique(masks[1])) == {0, 200}
        np.testing.assert_array_equal(carried, raters)
        assert known.all()


@pytest.mark.parametrize("augment", [None, GEOMETRY])
def test_boxes_keep_what_is_known(augment: Augment | None) -> None:
    known = np.array([True, False])
    boxes = Boxes(np.float32([[10, 10, 30, 30]]), np.array([0]), known)
    view = Transform("detection", 32, augment)(np.zeros((40, 40, 1), np.uint8), boxes, 2, (40, 40))
    np.testing.assert_array_equal(view.annotation.known, known)
