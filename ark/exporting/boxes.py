"""From every cell's boxes to those of an image, as mmdet chooses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ark.types import BoxPrediction


def choose(boxes: Tensor, scores: Tensor, facts: Mapping[str, Any]) -> BoxPrediction:
    """Boxes above the threshold, of those of one class that overlap the best, at most so many.

    torch's own choice keeps, where a level has more than mmdet's `nms_pre` (1000) candidates, only
    these, and compares the threshold with the probability before it is multiplied by the
    centerness: it may have further boxes below the threshold.

    Args:
        boxes: (B, A, 4) xyxy in pixels of the network's input.
        scores: (B, A, K).
        facts: score_threshold, nms_iou, max_boxes; see `Head.graph_facts`.
    """
    found = [_of_image(b, s, facts) for b, s in zip(boxes, scores, strict=True)]
    return BoxPrediction(*(list(parts) for parts in zip(*found, strict=True)))


def _of_image(
    boxes: Tensor, scores: Tensor, facts: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    some = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # a box has an area
    cells, labels = ((scores > facts["score_threshold"]) & some[:, None]).nonzero().T
    boxes, scores = boxes[cells], scores[cells, labels]
    kept = batched_nms(boxes, scores, labels, facts["nms_iou"])[: facts["max_boxes"]]
    return boxes[kept], scores[kept], labels[kept].to(torch.int64)
