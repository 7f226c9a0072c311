"""Which predicted boxes are hits, by the rules of COCO.

N images, K classes, T IoU thresholds, M predicted boxes, G boxes of the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

EVERY_AREA = [0.0, 1e10]


@dataclass
class Matches:
    """Predicted boxes of one class in all images, by falling score; of equal scores the earlier
    image first."""

    scores: np.ndarray  # (M,)
    images: np.ndarray  # (M,) index of each box's image
    hits: np.ndarray  # (T, M) bool: matched to a box of the truth at IoU t
    truth: np.ndarray  # (N,) how many boxes of the class each image shows


def match(predicted: list[np.ndarray], truth: list[np.ndarray], ious: np.ndarray) -> Matches:
    """Matches one class.

    In each image the surest box chooses first, the free box of the truth that it overlaps most, if
    by at least the threshold.

    Args:
        predicted: N arrays (M_n, 5) of xyxy and score.
        truth: N arrays (G_n, 4) of xyxy.
        ious: (T,) thresholds.
    """
    rule = COCOeval(None, None, "bbox")
    rule.params.iouThrs = ious
    scores, images, hits = [], [], []
    for n, (boxes, targets) in enumerate(zip(predicted, truth, strict=True)):
        if not len(boxes):
            continue
        order = np.argsort(-boxes[:, 4], kind="stable")
        scores.append(boxes[order, 4])
        images.append(np.full(len(boxes), n))
        hits.append(_hits(rule, boxes[order], targets))
    everything = np.concatenate(scores) if scores else np.zeros(0)
    order = np.argsort(-everything, kind="stable")
    return Matches(
        scores=everything[order],
        images=(np.concatenate(images) if images else np.zeros(0, int))[order],
        hits=(np.concatenate(hits, axis=1) if hits else np.zeros((len(ious), 0), bool))[:, order],
        truth=np.array([len(targets) for targets in truth], dtype=float),
    )


def _hits(rule: COCOeval, boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(T, M_n) of one image and class, its boxes by falling score."""
    if not len(targets):
        return np.zeros((len(rule.params.iouThrs), len(boxes)), bool)
    # what COCOeval.evaluate would fill in from files; an id of 0 would mean "no match"
    rule._gts = {(0, 0): [_entry(n + 1, box) for n, box in enumerate(targets)]}
    rule._dts = {(0, 0): [_entry(n + 1, box) | {"score": box[4]} for n, box in enumerate(boxes)]}
    rule.params.maxDets = [len(boxes)]
    rule.ious = {(0, 0): rule.computeIoU(0, 0)}
    return rule.evaluateImg(0, 0, EVERY_AREA, len(boxes))["dtMatches"] > 0


def _entry(number: int, box: np.ndarray) -> dict[str, object]:
    x1, y1, x2, y2 = box[:4]
    width, height = x2 - x1, y2 - y1
    return {
        "id": number,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "ignore": 0,
    }
