"""Oracles: numpy loops for Dice and IoU, distance transforms and MONAI for HD95."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from ark.types import MaskPrediction, SegmentationTarget
from heads.segmentation.metric import MaskMetric, hausdorff95

pytestmark = pytest.mark.filterwarnings("ignore:.*before the ``update`` method")
CLASSES = ("a", "b", "c", "d")


def dice_and_iou(found, truth):
    both, either = (found & truth).sum(), (found | truth).sum()
    if either == 0:
        return 1.0, 1.0
    return 2 * both / (found.sum() + truth.sum()), both / either


def hd95_by_transforms(found, truth):
    """NaN where one of both is empty."""
    if not found.any() or not truth.any():
        return math.nan
    edges = [mask & ~binary_erosion(mask) for mask in (found, truth)]
    ways = [distance_transform_edt(~edges[1 - n])[edges[n]] for n in (0, 1)]
    return max(np.percentile(way, 95) for way in ways)


def random_images(seed, count=9, size=(12, 9)):
    """Blobs; the first images are empty against empty, and empty against something."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, count, 4, *size, generator=rng)
    smooth = torch.nn.functional.avg_pool2d(noise.flatten(0, 1), 3, stride=1, padding=1)
    p, masks = smooth.view(noise.shape)
    masks = (masks > 0.5).to(torch.uint8)
    known = torch.rand(count, 4, generator=rng) < 0.7
    known[:, 3] = False  # nobody annotated this class
    masks[:4] = 0
    p[:2] *= 0.4
    masks[4:, 2] = 0  # never there
    return p, masks, known


def expected_of(found, truth, known, weights):
    """Every metric by loops over images and classes."""
    result, undefined = {}, []
    table = {"dice": [], "iou": [], "hd95": []}
    for k in range(known.shape[1]):
        rows = [n for n in range(len(known)) if known[n, k] and weights[n]]
        values = {"dice": [], "iou": [], "hd95": []}
        for n in rows:
            dice, iou = dice_and_iou(found[n, k], truth[n, k])
            distance = hd95_by_transforms(found[n, k], truth[n, k])
            for name, value in (("dice", dice), ("iou", iou), ("hd95", distance)):
                values[name] += [value] * int(weights[n])
            empty = bool(found[n, k].any()) != bool(truth[n, k].any())
            undefined += [empty] * int(weights[n])
        for name, each in values.items():
            measured = [v for v in each if not math.isnan(v)]
            table[name].append(np.mean(measured) if measured else math.nan)
            result[f"{name}/{CLASSES[k]}"] = table[name][-1]
    for name, each in table.items():
        measured = [v for v in each if not math.isnan(v)]
        result[name] = np.mean(measured) if measured else math.nan
    result["hd95_undefined"] = np.mean(undefined) if undefined else math.nan
    return result


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_equals_loops_over_annotated_images(seed):
    p, masks, known = random_images(seed)
    metric = MaskMetric(CLASSES)
    for part in torch.arange(9).split(4):
        truth = SegmentationTarget(masks[part], known[part])
        metric.update(MaskPrediction(p[part]), truth)
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = expected_of((p >= 0.5).numpy(), masks.bool().numpy(), known, np.ones(9))
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert math.isnan(found["dice/d"])

    weights = np.random.default_rng(seed).integers(0, 3, 9).astype(float)
    scored = metric.score(metric.evidence(), weights)
    expected = expected_of((p >= 0.5).numpy(), masks.bool().numpy(), known, weights)
    assert scored == pytest.approx(expected, abs=1e-5, nan_ok=True)
    brief = metric.score(metric.evidence(), weights, brief=True)
    assert set(brief) == {"dice", "iou", "hd95", "hd95_undefined"}


@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_that_of_monai(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import compute_hausdorff_distance

        rng = np.random.default_rng(seed)
        first = rng.random((40, 30)) < (0.02, 0.2, 0.6, 0.98)[seed]
        second = np.roll(first, (3, -2), axis=(0, 1)) ^ (rng.random((40, 30)) < 0.03)
        reference = compute_hausdorff_distance(
            torch.tensor(first)[None, None],
            torch.tensor(second)[None, None],
            include_background=True,
            percentile=95,
        )
    assert hausdorff95(first, second) == pytest.approx(float(reference), abs=1e-5)
    assert hausdorff95(first, second) == pytest.approx(hd95_by_transforms(first, second), abs=1e-9)


def test_a_shifted_square_lies_as_far_as_it_was_shifted():
    square = np.zeros((40, 40), bool)
    square[5:25, 5:25] = True
    assert hausdorff95(square, square) == 0
    assert hausdorff95(square, np.roll(square, 6, axis=1)) == 6
    pixel = np.zeros((9, 9), bool)
    pixel[0, 0] = True
    assert hausdorff95(pixel, pixel[::-1, ::-1]) == pytest.approx(8 * math.sqrt(2))


def test_empty_against_empty_is_one_and_against_something_is_zero():
    metric = MaskMetric(("a",))
    known = torch.ones(2, 1, dtype=torch.bool)
    probabilities = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    nothing = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    metric.update(MaskPrediction(probabilities), SegmentationTarget(nothing, known))
    found = metric.compute()
    assert found["dice"] == 0.5
    assert found["hd95"].isnan()
    assert found["hd95_undefined"] == 0.5
    metric.reset()
    assert metric.compute()["dice"].isnan()


def test_the_truth_is_what_at_least_half_of_the_raters_saw():
    votes = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8).view(1, 1, 1, 5)
    four = torch.full((1, 1), 4, dtype=torch.uint8)
    seen = torch.tensor([0.0, 0, 1, 1, 1]).view(1, 1, 1, 5)
    metric = MaskMetric(("a",))
    known = torch.ones(1, 1, dtype=torch.bool)
    metric.update(MaskPrediction(seen), SegmentationTarget(votes, known, four))
    assert metric.compute()["dice"] == 1


def test_exclusive_classes_are_compared_by_the_most_probable():
    p = torch.tensor([[0.45, 0.35], [0.3, 0.1], [0.0, 0.6]]).T.view(1, 2, 1, 3)
    masks = torch.tensor([[1, 0], [0, 0], [1, 1]], dtype=torch.uint8).T.reshape(1, 2, 1, 3)
    target = SegmentationTarget(masks, torch.ones(1, 2).bool())
    scores = {}
    for exclusive in (True, False):
        metric = MaskMetric(("a", "b"), exclusive=exclusive)
        metric.update(MaskPrediction(p, exclusive), target)
        scores[exclusive] = float(metric.compute()["dice"])
    assert scores[True] == 1  # the overlap belongs to the last class, 0.45 beats 0.2 and 0.35
    assert scores[False] < 1


def test_intervals_draw_patients():
    p, masks, known = random_images(0, count=30)
    metric = MaskMetric(CLASSES)
    metric.update(
        MaskPrediction(p), SegmentationTarget(masks, known), [f"p{n // 3}" for n in range(30)]
    )
    intervals = metric.intervals(draws=200)
    assert set(intervals) == {"dice", "iou", "hd95", "hd95_undefined"}
    for name, (low, high) in intervals.items():
        assert low <= float(metric.compute()[name]) <= high
        assert low < high
