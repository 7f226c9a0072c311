"""A head trained on one dataset scores the classes of another, through an ontology.

The Ark+ paper's zero-shot protocol: no text and no training, the output of a named head's class on
another dataset's images (spec ark.md, Downstream protocols). Beyond the paper, classes of another
name are found through the ontology, and boxes and masks are scored in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ark.head import Head
from ark.network import Network
from ark.ontology import Ontology
from ark.types import (
    Batch,
    BoxPrediction,
    ClassPrediction,
    DetectionTarget,
    MaskPrediction,
    MulticlassTarget,
    MultilabelTarget,
    Prediction,
    SegmentationTarget,
    Target,
    TaskSpec,
)

if TYPE_CHECKING:
    from torchmetrics import Metric

CLASSES = "classes"
FAMILY = {"multilabel": CLASSES, "multiclass": CLASSES, "ordinal": CLASSES}
FAMILY |= {"detection": "detection", "segmentation": "segmentation"}


@dataclass(frozen=True)
class Pair:
    """One class of a target task and the classes of one head that are its score."""

    head: str  # task key of the trained head
    target: str  # task key in the other dataset
    name: str  # the class there
    index: int  # its position there
    sources: tuple[str, ...]  # the head's classes
    metric: str  # what is reported


class ZeroShot:
    """Scores every pair of a trained head and a target class that the ontology joins.

    A head is never scored on its own task. Predictions of several source classes are joined by
    their sum where they exclude each other (multiclass), by their maximum else.

    Args:
        network: in eval mode.
        targets: tasks of other datasets.
    """

    def __init__(self, network: Network, targets: Sequence[TaskSpec], ontology: Ontology) -> None:
        self.network = network
        self._metrics: dict[Pair, Any] = {}  # metrics of a head, all with intervals
        for target in targets:
            for key, head in network.heads_by_key().items():
                if key != target.key and _family(head.task) == _family(target) is not None:
                    found = ontology.sources(target, head.task)
                    self._metrics |= dict(_metric(head, target, *item) for item in found.items())

    @property
    def pairs(self) -> list[Pair]:
        return list(self._metrics)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Adds a batch of one of the targets."""
        predictions: dict[str, Prediction] = {}
        for pair, metric in self._metrics.items():
            if pair.target != batch.task or not batch.keys:
                continue
            if pair.head not in predictions:
                predictions[pair.head] = self.network.predict(pair.head, batch.images)
            task = self.network.tasks[pair.head]
            chosen = [task.classes.index(name) for name in pair.sources]
            exclusive = task.kind in ("multiclass", "ordinal")
            mine = _only_predicted(predictions[pair.head], chosen, exclusive)
            metric.update(mine, _only_true(batch.target, pair.index), batch.patients)

    def scores(self, draws: int) -> Iterator[tuple[Pair, float, tuple[float, float]]]:
        """(pair, value, 95 % interval by patient); NaN where it cannot be measured."""
        for pair, metric in self._metrics.items():
            interval = metric.intervals(draws).get(pair.metric) if draws else None
            yield pair, float(metric.compute()[pair.metric]), interval or (torch.nan, torch.nan)


def _family(task: TaskSpec) -> str | None:
    return FAMILY.get(task.kind)


def _metric(head: Head, target: TaskSpec, name: str, sources: list[str]) -> tuple[Pair, Metric]:
    """The metric of a head like `head` for one class, of which an image has it or not."""
    kind = "multilabel" if _family(target) == CLASSES else target.kind
    metric = head.metrics(TaskSpec(target.dataset, target.name, kind, (name,)))
    # of an ordinal head the class is scored as a yes or no
    reported = "auroc" if _family(target) == CLASSES else head.main_metric
    index = target.classes.index(name)
    return Pair(head.task.key, target.key, name, index, tuple(sources), reported), metric


def _only_predicted(prediction: Prediction, chosen: list[int], exclusive: bool) -> Prediction:
    """The prediction of one class, which several classes of the head make up."""
    if isinstance(prediction, ClassPrediction):
        mine = prediction.probabilities[:, chosen]
        joined = mine.sum(dim=1) if exclusive else mine.amax(dim=1)
        return ClassPrediction(joined[:, None])
    if isinstance(prediction, MaskPrediction):
        masks = prediction.masks()[:, chosen].any(dim=1, keepdim=True)
        return MaskPrediction(masks.float())
    assert isinstance(prediction, BoxPrediction)
    kept = [torch.isin(labels, labels.new_tensor(chosen)) for labels in prediction.labels]
    return BoxPrediction(
        boxes=_where(prediction.boxes, kept),
        scores=_where(prediction.scores, kept),
        labels=[torch.zeros_like(labels) for labels in _where(prediction.labels, kept)],
    )


def _only_true(target: Target, index: int) -> Target:
    """The target of one class: an image has it or not."""
    if isinstance(target, MultilabelTarget):
        return MultilabelTarget(target.labels[:, [index]], target.known[:, [index]])
    if isinstance(target, MulticlassTarget):
        labels = (target.labels == index).float()[:, None]
        return MultilabelTarget(labels, torch.ones_like(labels, dtype=torch.bool))
    if isinstance(target, SegmentationTarget):
        raters = None if target.raters is None else target.raters[:, [index]]
        return SegmentationTarget(target.masks[:, [index]], target.known[:, [index]], raters)
    assert isinstance(target, DetectionTarget)
    kept = [labels == index for labels in target.labels]
    known = None if target.known is None else target.known[:, [index]]
    numbers = [torch.zeros_like(some) for some in _where(target.labels, kept)]
    return DetectionTarget(_where(target.boxes, kept), numbers, known)


def _where(values: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    return [value[mask] for value, mask in zip(values, kept, strict=True)]
