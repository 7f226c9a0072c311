"""From the views of single samples to one batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ark.types import (
    Batch,
    DetectionTarget,
    Kind,
    MulticlassTarget,
    MultilabelTarget,
    SegmentationTarget,
    Skipped,
    Target,
)
from datamodules.shards import BadSample, Sample
from datamodules.transforms import Transform, View


class BatchBuilder:
    """The samples of one batch while it is put together."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.keys: list[str] = []
        self.views: list[View] = []
        self.seeds: list[int] = []
        self.skipped: list[Skipped] = []

    def add(self, sample: Sample, seed: int) -> None:
        self.views.append(self.transform(sample.image, sample.annotation, seed, sample.size))
        self.keys.append(sample.key)
        self.seeds.append(seed)

    def skip(self, position: int, error: BadSample) -> None:
        self.skipped.append(Skipped(position, error.reason, str(error)))

    def batch(self, task: str, positions: list[int]) -> Batch:
        if not self.views:
            return self._empty(task, positions)
        teacher = [view.teacher for view in self.views if view.teacher is not None]
        return Batch(
            task=task,
            keys=self.keys,
            images=_stack([view.student for view in self.views], self.transform.size),
            teacher_images=_stack(teacher, self.transform.size) if teacher else None,
            target=_TARGETS[self.transform.kind](self.views),
            positions=positions,
            seeds=self.seeds,
            skipped=self.skipped,
        )

    def _empty(self, task: str, positions: list[int]) -> Batch:
        """Of samples that were all skipped: it only carries the news."""
        nothing = torch.zeros(0, 1, self.transform.size, self.transform.size, dtype=torch.uint8)
        target = MulticlassTarget(torch.zeros(0, dtype=torch.int64))
        return Batch(task, [], nothing, None, target, positions, [], self.skipped)


def _stack(images: list[np.ndarray], size: int) -> Tensor:
    """(B, C, S, S) uint8; one channel where all images are gray."""
    channels = max((image.shape[2] for image in images), default=1)
    batch = np.empty((len(images), channels, size, size), np.uint8)
    for plane, image in zip(batch, images, strict=True):
        plane[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(batch)


def _multilabel(views: list[View]) -> Target:
    labels = torch.from_numpy(np.stack([view.annotation for view in views]))
    return MultilabelTarget(labels=labels.nan_to_num(0.0), known=~labels.isnan())


def _multiclass(views: list[View]) -> Target:
    return MulticlassTarget(labels=torch.tensor([int(view.annotation) for view in views]))


def _detection(views: list[View]) -> Target:
    return DetectionTarget(
        boxes=[torch.from_numpy(view.annotation[0]) for view in views],
        labels=[torch.from_numpy(view.annotation[1]) for view in views],
    )


def _segmentation(views: list[View]) -> Target:
    return SegmentationTarget(
        masks=torch.from_numpy(np.stack([view.annotation[0] for view in views])),
        known=torch.from_numpy(np.stack([view.annotation[1] for view in views])),
    )


_TARGETS: dict[Kind, Callable[[list[View]], Target]] = {
    "multilabel": _multilabel,
    "multiclass": _multiclass,
    "detection": _detection,
    "segmentation": _segmentation,
}
