"""What predictions and targets can do by themselves: loops over pixels as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ark.types import BoxPrediction, MaskPrediction, SegmentationTarget


@pytest.mark.parametrize("seed", range(3))
def test_exclusive_masks_are_the_most_probable_of_classes_and_background(seed) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.5] * 4, (2, 5, 6)).transpose(0, 3, 1, 2)
    expected = np.zeros((2, 3, 5, 6), bool)
    for n, i, j in np.ndindex(2, 5, 6):
        best = p[n, :, i, j].argmax()
        if best:
            expected[n, best - 1, i, j] = True
    found = MaskPrediction(torch.tensor(p[:, 1:]), exclusive=True)
    for threshold in (0.1, 0.5):
        assert np.array_equal(found.masks(threshold), expected)


def test_masks_that_may_overlap_are_cut_at_the_threshold() -> None:
    p = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    assert MaskPrediction(p).masks().flatten().tolist() == [False, True, True]
    assert MaskPrediction(p).masks(0.95).flatten().tolist() == [False, False, False]


def test_an_item_is_a_batch_of_one() -> None:
    boxes = BoxPrediction(
        [torch.rand(n, 4) for n in (2, 3)],
        [torch.rand(n) for n in (2, 3)],
        [torch.zeros(n, dtype=torch.int64) for n in (2, 3)],
    )
    assert boxes.item(1).boxes[0] is boxes.boxes[1]
    assert len(boxes.item(1).scores) == 1
    assert MaskPrediction(torch.rand(2, 1, 4, 4), exclusive=True).item(0).exclusive
    masks = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1)
    second = SegmentationTarget(masks, torch.tensor([[True], [False]])).item(1)
    assert (int(second.masks), bool(second.known), second.raters) == (1, False, None)
