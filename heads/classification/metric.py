"""What classification heads are judged by.

torchmetrics has each of these metrics, but cannot weigh images, which the bootstrap needs: it would
have to sort every class a thousand times. Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ark.types import ClassPrediction, MulticlassTarget, MultilabelTarget

from ..weighted import WeightedMetric
from .curves import BINS, Curve, gaps
from .links import chosen

UNKNOWN = -1.0


@dataclass(frozen=True)
class Evidence:
    """What the metrics need of N images, sorted and summed as far as weights allow."""

    curves: list[Curve]  # of each class
    # (N, 3 K + 1 + BINS): chosen and present, chosen plus present, present, counted pairs, gaps
    sums: np.ndarray
    truth: np.ndarray  # (N,) and the class chosen, also (N,); of multilabel they say nothing
    choice: np.ndarray


class ClassMetric(WeightedMetric):
    """Of all images where a class is known; a label of at least 0.5 counts as present.

    auroc, auprc: areas under the ROC curve and (average precision) under the precision-recall
        curve, one class against the rest; means over the classes with positives and negatives.
    f1: of what is chosen, see `.links.chosen`; mean over the classes with positives.
    ece: expected calibration error in 15 bins; of multilabel over all known pairs of image and
        class, else of the most probable class.
    accuracy: the share of images whose class is chosen; not of multilabel.
    mae, qwk (ordinal): mean distance in classes, and Cohen's kappa with quadratic weights.

    The first three are also given by class, as "auroc/<class>". NaN where nothing can be measured.

    Args:
        kind: "multilabel", "multiclass" or "ordinal".
        thresholds: K probabilities from which a class of a multilabel task is chosen; None: 0.5.
        scored: the classes over which the means of auroc, auprc and f1 go; all if empty.
    """

    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        classes: Sequence[str],
        kind: str = "multilabel",
        thresholds: Sequence[float] | None = None,
        scored: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.classes, self.kind = tuple(classes), kind
        self.scored = [self.classes.index(name) for name in scored or classes]
        self.thresholds = [0.5] * len(self.classes) if thresholds is None else list(thresholds)
        for state in ("probabilities", "labels"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def see(self, prediction: ClassPrediction, target: MultilabelTarget | MulticlassTarget) -> int:
        if isinstance(target, MulticlassTarget):
            labels = F.one_hot(target.labels, len(self.classes)).float()
        else:
            labels = (target.labels >= 0.5).float().masked_fill(~target.known, UNKNOWN)
        self.probabilities.append(prediction.probabilities.detach().float().flatten())
        self.labels.append(labels.flatten())
        return len(labels)

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """What all ranks saw, in the same order on each: see `table`."""
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self.table()

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and labels, each (N, K) float32; labels are 1, 0 or UNKNOWN."""
        shape = (-1, len(self.classes))
        return self.gathered("probabilities").reshape(shape), self.gathered("labels").reshape(shape)

    def evidence(self) -> Evidence:
        probabilities, labels = self.table()
        known, present = labels >= 0, labels > 0
        thresholds = torch.tensor(self.thresholds)
        picked = chosen(torch.from_numpy(probabilities), self.kind, thresholds).numpy() & known
        if self.kind == "multilabel":
            gap, counted = gaps(probabilities, present, known), known.sum(axis=1)
        else:
            top = probabilities.argmax(axis=1)[:, None]
            confidence, right = (np.take_along_axis(x, top, 1) for x in (probabilities, present))
            gap, counted = gaps(confidence, right, np.ones_like(right)), np.ones(len(labels))
        parts = (picked & present, picked.astype(int) + present, present, counted[:, None], gap)
        return Evidence(
            curves=[Curve(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)],
            sums=np.concatenate(parts, axis=1, dtype=float),
            truth=labels.argmax(axis=1),
            choice=picked.argmax(axis=1),
        )

    def score(
        self, evidence: Evidence, weights: np.ndarray, brief: bool = False
    ) -> dict[str, float]:
        count = len(self.classes)
        sums = weights @ evidence.sums
        hits, called, present = sums[: 3 * count].reshape(3, count)
        pairs, gap = sums[3 * count], sums[-BINS:]
        areas = np.array([curve.areas(weights) for curve in evidence.curves])
        f1 = 2 * hits / np.where(called > 0, called, 1.0)
        single = {
            "auroc": areas[:, 0],
            "auprc": areas[:, 1],
            "f1": np.where(present > 0, f1, np.nan),
        }
        found = {name: _mean(values[self.scored]) for name, values in single.items()}
        if not brief:  # the bootstrap shifts it up: its interval need not hold the value itself
            found["ece"] = _share(np.abs(gap).sum(), pairs)
        if self.kind != "multilabel":
            found["accuracy"] = _share(hits.sum(), pairs)
        if self.kind == "ordinal":
            found |= _distances(evidence.truth, evidence.choice, weights, count)
        if not brief:
            found |= {
                f"{name}/{label}": float(value)
                for name, values in single.items()
                for label, value in zip(self.classes, values, strict=True)
            }
        return found


def _distances(
    truth: np.ndarray, choice: np.ndarray, weights: np.ndarray, classes: int
) -> dict[str, float]:
    """mae and qwk (Cohen 1968)."""
    table = np.bincount(truth * classes + choice, weights, classes**2).reshape(classes, classes)
    apart = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    total = table.sum()
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / (total if total > 0 else 1.0)
    disagreement = _share(float((apart**2 * table).sum()), float((apart**2 * by_chance).sum()))
    return {"mae": _share(float((apart * table).sum()), total), "qwk": 1 - disagreement}


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
