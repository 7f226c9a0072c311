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

    Of a detector with a centerness mmdet compares the threshold with the probability before it is
    multiplied, and has further boxes that are below the threshold after it; it also ranks by it
    which candidates a level sends (1000 as a rule), which matters where there are more.

    Args:
        boxes: (B, A, 4) xyxy in pixels of the network's input.
        scores: (B, A, K).
        facts: score_threshold; level_sizes (how many of A are each level's), level_candidates (most
            of a level that are looked at, -1: all), nms_iou, max_boxes.
    """
    found = [_of_image(b, s, facts) for b, s in zip(boxes, scores, strict=True)]
    return BoxPrediction(*(list(parts) for parts in zip(*found, strict=True)))


def _of_image(
    boxes: Tensor, scores: Tensor, facts: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    some = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # a box has an area
    candidates = torch.where(scores > facts["score_threshold"], scores, 0)
    most = facts["level_candidates"]
    levels = [_best(level, most) for level in candidates.split(facts["level_sizes"])]
    cells, labels = ((torch.cat(levels) > 0) & some[:, None]).nonzero().T
    boxes, scores = boxes[cells], scores[cells, labels]
    kept = batched_nms(boxes, scores, labels, facts["nms_iou"])[: facts["max_boxes"]]
    return boxes[kept], scores[kept], labels[kept].to(torch.int64)


def _best(scores: Tensor, most: int) -> Tensor:
    """(A, K), with all but the `most` greatest set to 0; -1 keeps all."""
    if most < 0 or scores.numel() <= most:
        return scores
    kept = scores.flatten().topk(most)
    return torch.zeros_like(scores).flatten().scatter(0, kept.indices, kept.values).view_as(scores)
