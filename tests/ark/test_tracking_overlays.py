from __future__ import annotations

import numpy as np
import pytest
import torch
import wandb

from ark.tracking.overlays import LEAST_SCORE, MOST_BOXES, _packed, layers
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    DetectionTarget,
    MaskPrediction,
    SegmentationTarget,
)
from toys import CLASSES, SIZE, make_target


def test_boxes_keep_their_pixels_classes_and_scores() -> None:
    truth = DetectionTarget([torch.tensor([[1.0, 2.0, 30.0, 40.0]])], [torch.tensor([2])])
    said = BoxPrediction(
        [torch.tensor([[3.0, 4.0, 5.0, 6.0], [0.0, 0.0, 9.0, 9.0]])],
        [torch.tensor([0.75, LEAST_SCORE / 2])],
        [torch.tensor([1, 0])],
    )
    found = layers({"truth": truth, "student": said}, CLASSES)
    assert found is not None
    (box,) = found["boxes"]["truth"]["box_data"]
    assert box["position"] == {"minX": 1.0, "minY": 2.0, "maxX": 30.0, "maxY": 40.0}
    assert (box["class_id"], box["domain"], "scores" in box) == (2, "pixel", False)
    (box,) = found["boxes"]["student"]["box_data"]
    assert box["scores"] == {"score": 0.75}
    assert box["box_caption"] == "lung 0.75"
    assert found["boxes"]["truth"]["class_labels"] == {0: "heart", 1: "lung", 2: "rib"}
    wandb.Image(np.zeros((SIZE, SIZE), np.uint8), **found)  # it checks what it is given


def test_a_diverged_detector_is_shown_without_its_nans() -> None:
    boxes = torch.full((2, 4), float("nan"))
    boxes[1] = torch.tensor([0.0, 0.0, 4.0, 4.0])
    said = BoxPrediction([boxes], [torch.tensor([0.9, 0.8])], [torch.tensor([0, 0])])
    found = layers({"student": said}, CLASSES)
    assert found is not None
    assert len(found["boxes"]["student"]["box_data"]) == 1
    many = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(3 * MOST_BOXES, 1)
    said = BoxPrediction([many], [torch.ones(len(many))], [torch.zeros(len(many)).long()])
    found = layers({"student": said}, CLASSES)
    assert found is not None
    assert len(found["boxes"]["student"]["box_data"]) == MOST_BOXES


@pytest.mark.parametrize("seed", range(5))
def test_overlapping_masks_are_all_in_some_layer(seed: int) -> None:
    masks = np.random.default_rng(seed).random((6, 9, 7)) < 0.2
    packed = _packed(masks)
    assert len(packed) > 1
    for k, mask in enumerate(masks):
        shown = [layer == k + 1 for layer in packed]
        assert np.array_equal(np.any(shown, axis=0), mask)
        assert sum(s.any() for s in shown) == mask.any()  # a class is in one layer only
    apart = np.stack([np.eye(7, dtype=bool)[[k]].repeat(9, 0) for k in range(6)])
    assert len(_packed(apart)) == 1


def test_masks_become_layers_of_truth_and_prediction() -> None:
    truth = make_target("segmentation", 1)
    assert isinstance(truth, SegmentationTarget)
    probabilities = torch.zeros(1, 3, SIZE, SIZE)
    probabilities[0, 1, :5] = 0.9
    found = layers({"truth": truth, "teacher": MaskPrediction(probabilities)}, CLASSES)
    assert found is not None
    masks = found["masks"]
    assert [name.split()[0] for name in masks] == ["truth"] * (len(masks) - 1) + ["teacher"]
    assert (masks["teacher"]["mask_data"][:5] == 2).all()
    assert (masks["teacher"]["mask_data"][5:] == 0).all()
    assert masks["truth"]["class_labels"] == {0: "none", 1: "heart", 2: "lung", 3: "rib"}
    for k in range(3):
        drawn = [m["mask_data"] == k + 1 for n, m in masks.items() if n.startswith("truth")]
        assert np.array_equal(np.any(drawn, axis=0), truth.masks[0, k].numpy() > 0)
    wandb.Image(np.zeros((SIZE, SIZE), np.uint8), **found)


def test_the_majority_of_raters_is_drawn() -> None:
    masks = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 1, 1, 3)
    raters = torch.tensor([[4]], dtype=torch.uint8)
    truth = SegmentationTarget(masks, torch.ones(1, 1, dtype=torch.bool), raters)
    found = layers({"truth": truth}, ["heart"])
    assert found is not None
    assert found["masks"]["truth"]["mask_data"].tolist() == [[0, 1, 1]]


def test_classes_have_no_layers() -> None:
    said = ClassPrediction(torch.rand(1, 3))
    assert layers({"truth": make_target("multilabel", 1), "student": said}, CLASSES) is None
