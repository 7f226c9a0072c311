"""Average precision and FROC of boxes, as functions of images and their weights.

N images, K classes, T IoU thresholds, M predicted boxes of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ark.types import BoxPrediction, DetectionTarget

from ..weighted import WeightedMetric
from .box_matching import Matches, match

IOUS = np.array([0.4, *np.linspace(0.5, 0.95, 10)])
AT_40, AT_50 = 0, 1
RECALLS = np.linspace(0, 1, 101)
FALSE_PER_IMAGE = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass
class Curve:
    """Predicted boxes of all classes by falling score, for FROC."""

    images: np.ndarray  # (M,) index of each box's image
    hits: np.ndarray  # (M,) bool, at IoU 0.5
    last: np.ndarray  # indices of the last box of each score: no threshold parts equals


@dataclass
class Evidence:
    classes: list[Matches]
    pooled: Curve
    annotated: np.ndarray  # (N,) bool: some class was looked for


class BoxAP(WeightedMetric):
    """COCO's average precision and FROC, each in [0, 1].

    - `map40`, `map50`: at IoU 0.40 and 0.50; `map`: the mean over 0.50:0.95. Means over the
      classes that have a box in the truth, of the precision at 101 recalls; every predicted box
      counts, and boxes of every size.
    - `froc`: the mean share of the boxes of all classes that is found at 1/8, 1/4, 1/2, 1, 2, 4 and
      8 false boxes an image. A box is found if a prediction of its class overlaps it by an IoU of
      0.5 or more, each prediction finding one box at most (COCO's matching); all other
      predictions are false. One score threshold for all classes; the most found under any
      threshold that gives no more false boxes.
    - `ap50/<class>`, `ap40/<class>`.

    Where a class was not looked for on an image (`DetectionTarget.known`), its boxes there count
    neither as hits nor as false, as LVIS has it (Gupta et al. 2019). What could not be measured is
    NaN.
    """

    predicted: list[Tensor]  # rows of six: box, score, class
    predicted_counts: list[Tensor]  # per image
    truth: list[Tensor]  # rows of five: box, class
    truth_counts: list[Tensor]
    known: list[Tensor]  # K per image, 0 or 1

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        for state in ("predicted", "predicted_counts", "truth", "truth_counts", "known"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def see(self, prediction: BoxPrediction, target: DetectionTarget) -> int:
        """Adds B images. Both in xyxy pixels of the same frame."""
        count = len(target.boxes)
        self.predicted.append(_flat(prediction.boxes, prediction.scores, prediction.labels))
        self.predicted_counts.append(_counts(prediction.labels))
        self.truth.append(_flat(target.boxes, target.labels))
        self.truth_counts.append(_counts(target.labels))
        known = target.known
        if known is None:
            known = torch.ones(count, len(self.classes), device=self.device)
        self.known.append(known.float().flatten())
        return count

    def evidence(self) -> Evidence:
        known = self.gathered("known").reshape(-1, len(self.classes)) > 0
        predicted = self._rows("predicted", 6)
        truth = self._rows("truth", 5)
        classes = []
        for k in range(len(self.classes)):
            found = [
                p[(p[:, 5] == k) & sure[k], :5] for p, sure in zip(predicted, known, strict=True)
            ]
            boxes = [t[(t[:, 4] == k) & sure[k], :4] for t, sure in zip(truth, known, strict=True)]
            classes.append(match(found, boxes, IOUS))
        return Evidence(classes, _pool(classes), np.any(known, axis=1))

    def score(
        self, evidence: Evidence, weights: np.ndarray, brief: bool = False
    ) -> dict[str, float]:
        each = np.array([_average_precisions(matches, weights) for matches in evidence.classes])
        result = {
            "map40": _mean(each[:, AT_40]),
            "map50": _mean(each[:, AT_50]),
            "map": _mean(each[:, AT_50:]),
            "froc": _froc(evidence, weights),
        }
        if not brief:
            for name, column in (("ap50", AT_50), ("ap40", AT_40)):
                named = zip(self.classes, each[:, column], strict=True)
                result |= {f"{name}/{label}": float(value) for label, value in named}
        return result

    def _rows(self, state: str, width: int) -> list[np.ndarray]:
        """The inverse of `_flat`: N arrays of rows."""
        ends = np.cumsum(self.gathered(f"{state}_counts").astype(int))
        if not len(ends):
            return []
        return np.split(self.gathered(state).reshape(-1, width).astype(float), ends[:-1])


def _average_precisions(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(T,) as COCOeval.accumulate, each image counted by its weight; NaN without a box in truth."""
    boxes = float(matches.truth @ weights)
    if boxes == 0:
        return np.full(len(IOUS), np.nan)
    weight = weights[matches.images]
    ranked = np.cumsum(weight)
    result = np.zeros(len(IOUS))
    for t, hits in enumerate(matches.hits):
        at = np.flatnonzero(hits)  # precision peaks where a hit is added
        true = np.cumsum(weight[at])
        precision = true / (ranked[at] + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(true / boxes, RECALLS, side="left")
        result[t] = np.append(envelope, 0)[np.minimum(reached, len(at))].mean()
    return result


def _pool(classes: list[Matches]) -> Curve:
    scores = np.concatenate([matches.scores for matches in classes])
    order = np.argsort(-scores, kind="stable")
    return Curve(
        images=np.concatenate([matches.images for matches in classes])[order],
        hits=np.concatenate([matches.hits[AT_50] for matches in classes])[order],
        last=np.flatnonzero(np.diff(scores[order], append=np.nan) != 0),
    )


def _froc(evidence: Evidence, weights: np.ndarray) -> float:
    boxes = sum(float(matches.truth @ weights) for matches in evidence.classes)
    images = float(weights @ evidence.annotated)
    if boxes == 0:
        return np.nan
    curve = evidence.pooled
    weight = weights[curve.images]
    found = np.cumsum(weight * curve.hits)[curve.last] / boxes
    false = np.cumsum(weight * ~curve.hits)[curve.last] / images
    allowed = np.searchsorted(false, FALSE_PER_IMAGE, side="right")  # so many thresholds
    return float(np.append(0, found)[allowed].mean())


def _mean(values: np.ndarray) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else np.nan


def _flat(boxes: list[Tensor], *columns: list[Tensor]) -> Tensor:
    """B x (N, 4) and B x (N,) ... -> one flat tensor of rows, box first."""
    rows = [torch.cat(boxes).float(), *(torch.cat(column).float()[:, None] for column in columns)]
    return torch.cat(rows, dim=1).flatten()


def _counts(labels: list[Tensor]) -> Tensor:
    return torch.tensor([len(image) for image in labels], device=labels[0].device).float()
