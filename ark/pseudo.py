"""Pseudo-labels: the teacher's predictions in the place of labels that nobody gave.

Not in the papers and off by default. Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ark.types import (
    KINDS,
    BoxPrediction,
    ClassPrediction,
    ConfigError,
    DetectionTarget,
    MaskPrediction,
    MultilabelTarget,
    Prediction,
    SegmentationTarget,
    Target,
    TaskSpec,
)

FILLED = ("multilabel", "segmentation", "detection")
WHY_NOT = {
    **dict.fromkeys(("multiclass", "ordinal"), "each image has its class"),
    **dict.fromkeys(("values", "points"), "a prediction without probabilities is never sure"),
}


@dataclass(frozen=True)
class PseudoLabels:
    """When the teacher is sure of a class that is not known on an image; see `fill`.

    Args:
        low: a class that is less probable than this everywhere is absent; 0: none ever is.
        high: one of at least this probability is present.
        soft: of kind "multilabel", the label is the teacher's probability instead of 0 or 1.
        after: the share of the run's steps before which nothing is filled: a young teacher knows
            little.

    Raises:
        ConfigError: not 0 <= low < high <= 1, or `after` is not in [0, 1).
    """

    low: float = 0.05
    high: float = 0.95
    soft: bool = False
    after: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"model.pseudo_labels: low {self.low}, high {self.high}; expected probabilities, "
                "0 <= low < high <= 1"
            )
        if not 0 <= self.after < 1:
            raise ConfigError(
                f"model.pseudo_labels: after {self.after}; expected a share of the run in [0, 1)"
            )

    def begun(self, step: int, total: int) -> bool:
        """Whether labels are filled in optimiser step `step` of `total`."""
        return step >= self.after * total


def pseudo_by_task(
    tasks: Iterable[TaskSpec], given: Mapping[str, PseudoLabels]
) -> dict[str, PseudoLabels]:
    """Of each task that is filled how; a task's key goes before its kind.

    Args:
        given: by task key or task kind.

    Raises:
        ConfigError: a name is no task of the run and no kind, or such labels cannot be filled.
    """
    tasks = list(tasks)
    kinds = {**{kind: kind for kind in KINDS}, **{task.key: task.kind for task in tasks}}
    for name, config in given.items():
        where = f"model.pseudo_labels: {name}"
        if name not in kinds:
            raise ConfigError(f"{where}: expected a task key or a kind of {list(kinds)}")
        kind = kinds[name]
        if kind not in FILLED:
            raise ConfigError(f"{where}: {kind} has none, {WHY_NOT[kind]}; expected {FILLED}")
        if config.soft and kind != "multilabel":
            raise ConfigError(f"{where}: soft is for kind multilabel; leave it out for {kind}")
    found = {task.key: given.get(task.key, given.get(task.kind)) for task in tasks}
    return {key: config for key, config in found.items() if config is not None}


def lacking(target: Target) -> bool:
    """False where `fill` could fill nothing, so that no teacher need be asked.

    On a GPU only whether the target could lack labels at all, since to look would wait for it.
    """
    known = getattr(target, "known", None)
    if known is None or not isinstance(target, tuple(_FILL)):
        return False
    return known.device.type != "cpu" or not bool(known.all())


def fill(target: Target, prediction: Prediction, config: PseudoLabels) -> Target:
    """`target` with the missing labels of which the teacher is sure. What is known stays as it is.

    Multilabel: a class of probability p < low becomes 0, of p >= high 1 (with `soft` both p).

    Segmentation: a class becomes the teacher's mask (p >= 0.5; of exclusive classes where it is
    the most probable, and not where the annotation says another) if its mean p inside that mask is
    at least high; an empty mask if p < low in every pixel.

    Detection: of a class with boxes of score >= high these become its boxes, and what scores less
    is background like the rest of the image; one without a box of score >= low has no boxes.

    Other targets, and one that lacks nothing, are returned as they are.

    Args:
        prediction: the teacher's; boxes and masks must be in the target's geometry, and they are:
            where a recipe shows the teacher the whole image (Ark+), tasks with boxes or masks are
            refused by the datamodule.
    """
    return _FILL[type(target)](target, prediction, config) if lacking(target) else target


def share_filled(given: Target, filled: Target) -> Tensor:
    """Scalar: the share of the labels that nobody gave of which the teacher was sure."""
    missing, left = (target.known.logical_not().sum() for target in (given, filled))  # type: ignore[union-attr]
    return (missing - left) / missing.clamp(min=1)


def _fill_labels(
    target: MultilabelTarget, prediction: ClassPrediction, config: PseudoLabels
) -> MultilabelTarget:
    p = prediction.probabilities.to(target.labels)
    sure = ~target.known & ((p < config.low) | (p >= config.high))
    labels = p if config.soft else (p >= config.high).to(p)
    return MultilabelTarget(torch.where(sure, labels, target.labels), target.known | sure)


def _fill_masks(
    target: SegmentationTarget, prediction: MaskPrediction, config: PseudoLabels
) -> SegmentationTarget:
    p, inside = prediction.probabilities.float(), prediction.masks()
    area = inside.sum(dim=(2, 3))
    present = (p * inside).sum(dim=(2, 3)) >= config.high * area
    absent = p.amax(dim=(2, 3)) < config.low
    sure = ~target.known & torch.where(area > 0, present, absent)
    if prediction.exclusive:
        annotated = (target.masks > 0) & target.known[..., None, None]
        inside = inside & ~annotated.any(dim=1, keepdim=True)
    masks = torch.where(sure[..., None, None], inside.to(target.masks), target.masks)
    raters = None if target.raters is None else target.raters.masked_fill(sure, 1)
    return SegmentationTarget(masks, target.known | sure, raters)


def _fill_boxes(
    target: DetectionTarget, prediction: BoxPrediction, config: PseudoLabels
) -> DetectionTarget:
    assert target.known is not None
    known, boxes, labels = target.known.clone(), [], []
    for n, (scores, classes) in enumerate(zip(prediction.scores, prediction.labels, strict=True)):
        sure = scores >= config.high
        present, possible = (
            _occurring(classes[chosen], known[n]) for chosen in (sure, scores >= config.low)
        )
        filled = ~known[n] & (present | ~possible)
        # of a class that nobody looked for the target should have no box, and if it has, no loss
        # has read it
        stay, take = ~filled[target.labels[n]], sure & filled[classes]
        boxes.append(torch.cat([target.boxes[n][stay], prediction.boxes[n][take]]))
        labels.append(torch.cat([target.labels[n][stay], classes[take]]))
        known[n] |= filled
    return replace(target, boxes=boxes, labels=labels, known=known)


def _occurring(labels: Tensor, like: Tensor) -> Tensor:
    """(N,) class indices -> (K,) bool: which classes there are."""
    return torch.zeros_like(like).index_fill(0, labels, True)


_FILL: dict[type, Callable[..., Target]] = {
    MultilabelTarget: _fill_labels,
    SegmentationTarget: _fill_masks,
    DetectionTarget: _fill_boxes,
}
