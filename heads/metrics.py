"""What the heads of classification and segmentation are judged by.

Each metric has `update(prediction, target)` and `compute() -> dict[str, Tensor]` with the same keys
on every rank and in every pass: a class that nothing could be measured on is NaN and is left out of
the mean. Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from ark.types import (
    ClassPrediction,
    MaskPrediction,
    MulticlassTarget,
    MultilabelTarget,
    SegmentationTarget,
)

UNKNOWN = -1.0


class ClassMetric(Metric):
    """Area under the ROC curve, one class against the rest, over the images where it is known.

    A label of at least 0.5 counts as positive. `compute` gives "auroc/<class>", their mean
    "auroc" over the classes that have both positives and negatives, and, for multiclass,
    "accuracy".
    """

    higher_is_better = True
    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: Sequence[str], multiclass: bool = False) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.multiclass = multiclass
        # One-dimensional floats: what torchmetrics gathers from a rank that saw no image.
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(
        self, prediction: ClassPrediction, target: MultilabelTarget | MulticlassTarget
    ) -> None:
        if isinstance(target, MulticlassTarget):
            labels = F.one_hot(target.labels, len(self.classes)).float()
        else:
            labels = (target.labels >= 0.5).float().masked_fill(~target.known, UNKNOWN)
        self.probabilities.append(prediction.probabilities.detach().float().flatten())
        self.labels.append(labels.flatten())

    def compute(self) -> dict[str, Tensor]:
        probabilities, labels = self._table(self.probabilities), self._table(self.labels)
        each = torch.stack([_auroc(*pair) for pair in zip(probabilities.T, labels.T, strict=True)])
        result = {"auroc": each.nanmean()}
        if self.multiclass:
            hits = probabilities.argmax(dim=1) == labels.argmax(dim=1)
            result["accuracy"] = hits.float().mean()
        return result | _per_class("auroc", self.classes, each)

    def _table(self, state: list[Tensor]) -> Tensor:
        if isinstance(state, list) and not state:
            return torch.zeros(0, len(self.classes), device=self.device)
        return dim_zero_cat(state).view(-1, len(self.classes))


class MaskMetric(Metric):
    """Dice and IoU of binary masks, each image and class by itself; empty against empty is 1.

    `compute` gives "dice/<class>", the mean over the images where the class is annotated, and
    "dice" and "iou", the mean over classes.

    Args:
        threshold: a pixel of at least this probability belongs to the mask.
    """

    higher_is_better = True
    full_state_update = False
    dice_sum: Tensor
    iou_sum: Tensor
    count: Tensor

    def __init__(self, classes: Sequence[str], threshold: float = 0.5) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.threshold = threshold
        for name in ("dice_sum", "iou_sum", "count"):
            self.add_state(name, torch.zeros(len(self.classes)), dist_reduce_fx="sum")

    def update(self, prediction: MaskPrediction, target: SegmentationTarget) -> None:
        found, truth = prediction.probabilities >= self.threshold, target.masks.bool()
        both = (found & truth).sum(dim=(2, 3)).float()
        areas = (found.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).float()
        known = target.known
        self.dice_sum += (_ratio(2 * both, areas) * known).sum(dim=0)
        self.iou_sum += (_ratio(both, areas - both) * known).sum(dim=0)
        self.count += known.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        dice = self.dice_sum / self.count  # 0 / 0 = NaN: a class that no image knows
        result = {"dice": dice.nanmean(), "iou": (self.iou_sum / self.count).nanmean()}
        return result | _per_class("dice", self.classes, dice)


def _auroc(scores: Tensor, labels: Tensor) -> Tensor:
    known = labels != UNKNOWN
    scores, positive = scores[known], labels[known] == 1
    if positive.all() or not positive.any():  # torchmetrics would call this 0
        return scores.new_tensor(torch.nan)
    return binary_auroc(scores, positive.int())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 1.0, part / whole.clamp(min=1))


def _per_class(name: str, classes: Sequence[str], values: Tensor) -> dict[str, Tensor]:
    return {f"{name}/{label}": value for label, value in zip(classes, values, strict=True)}
