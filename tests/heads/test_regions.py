"""Region-guided alignment against loops over cells, as spec foundation_x.md writes it."""

import math

import numpy as np
import pytest
import torch

from ark.types import BoxPrediction
from heads.segmentation.regions import align

SIZE = (96, 64)  # H, W
STRIDES = (4, 8)


def mask_by_loops(boxes, stride):
    """M at each cell's centre: the maximum over the boxes of 1 inside, a Gaussian outside."""
    mask = np.zeros((SIZE[0] // stride, SIZE[1] // stride))
    for i, j in np.ndindex(mask.shape):
        y, x = (i + 0.5) * stride, (j + 0.5) * stride
        for x1, y1, x2, y2 in boxes:
            width, height = (x2 - x1) * math.sqrt(1.5), (y2 - y1) * math.sqrt(1.5)
            left, top = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
            dx = max(left - x, 0, x - (left + width))
            dy = max(top - y, 0, y - (top + height))
            sigma = min(1.5 * max(width, height), SIZE[1], SIZE[0])
            mask[i, j] = max(mask[i, j], math.exp(-(dx**2 + dy**2) / (2 * sigma**2)))
    return mask


def random_regions(seed, counts):
    rng = torch.Generator().manual_seed(seed)
    boxes = []
    for n in counts:
        corner = torch.rand(n, 2, generator=rng) * 40
        boxes.append(torch.cat([corner, corner + 3 + 20 * torch.rand(n, 2, generator=rng)], dim=1))
    scores = [torch.rand(n, generator=rng).sort(descending=True).values for n in counts]
    return BoxPrediction(boxes, scores, [torch.zeros(n, dtype=torch.int64) for n in counts])


def make_maps(batch):
    return [torch.randn(batch, 3, SIZE[0] // s, SIZE[1] // s, requires_grad=True) for s in STRIDES]


@pytest.mark.parametrize("seed", range(4))
def test_maps_fade_as_the_loops_say(seed):
    regions, maps = random_regions(seed, [4, 1, 7]), make_maps(3)
    found = align(maps, regions, SIZE, STRIDES, least_score=0.3)
    for x, stride, result in zip(maps, STRIDES, found, strict=True):
        for n in range(3):
            boxes = regions.boxes[n][regions.scores[n] > 0.3].numpy()
            mask = mask_by_loops(boxes, stride) if len(boxes) else np.ones(x.shape[2:])
            expected = x[n].detach().numpy() * (0.5 + 0.5 * mask)
            np.testing.assert_allclose(result[n].detach(), expected, atol=1e-5)


def test_an_image_without_sure_boxes_keeps_its_features():
    regions, maps = random_regions(0, [3, 0]), make_maps(2)
    for x, result in zip(maps, align(maps, regions, SIZE, STRIDES, 1.0), strict=True):
        assert torch.equal(x, result)


def test_gradients_reach_the_features_and_not_the_boxes():
    regions, maps = random_regions(1, [2]), make_maps(1)
    regions.boxes[0].requires_grad_()
    regions.scores[0].requires_grad_()
    sum(x.sum() for x in align(maps, regions, SIZE, STRIDES, 0.0)).backward()
    assert regions.boxes[0].grad is None
    assert regions.scores[0].grad is None
    assert all(((x.grad >= 0.5) & (x.grad <= 1)).all() for x in maps)
    assert all((x.grad == 1).any() and (x.grad < 1).any() for x in maps)


def test_a_box_of_no_area_and_half_precision_stay_finite():
    regions, maps = random_regions(0, [1]), make_maps(1)
    regions.boxes[0][:] = 20.0
    regions.scores[0][:] = 1.0
    for x in align([m.bfloat16() for m in maps], regions, SIZE, STRIDES, 0.3):
        assert x.dtype == torch.bfloat16
        assert x.isfinite().all()
