"""From the views of single samples to one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ark.types import (
    Batch,
    DetectionTarget,
    Kind,
    MulticlassTarget,
    MultilabelTarget,
    PointsTarget,
    SegmentationTarget,
    Skipped,
    Target,
    ValuesTarget,
)
from datamodules.tars.shards import BadSample, Sample, ShardReader
from datamodules.transforms import Transform
from datamodules.uncertain import Uncertain, unknown


class BatchBuilder:
    """The samples of one batch while it is put together.

    Args:
        transform: makes the views of each.
        count: samples that are to come.
        uncertain: what uncertain labels become; None: unknown, as in evaluation, where there is no
            truth to compare with.
    """

    def __init__(
        self, transform: Transform, count: int, uncertain: Uncertain | None = None
    ) -> None:
        self.transform, self.uncertain = transform, uncertain
        self.keys: list[str] = []
        self.patients: list[str] = []  # in evaluation
        self.seeds: list[int] = []
        self.skipped: list[Skipped] = []
        self._annotations: list[Any] = []
        self._student = _Stack(count, transform.size)
        self._teacher = _Stack(count, transform.size) if transform.two_views else self._student

    def add(self, sample: Sample | BadSample, reader: ShardReader, seed: int) -> None:
        """Decodes, transforms and keeps a sample; raises what is wrong with it."""
        if isinstance(sample, BadSample):
            raise sample
        patient = None if self.transform.training else reader.patient(sample)
        image = reader.decode(sample, self.transform.reads)
        room = self._student.room()
        view = self.transform(image, sample.annotation, seed, sample.size, room)
        if view.teacher is not None and self.transform.two_views:
            self._teacher.add(view.teacher)  # first: it may lie where the student's view goes
        self._student.add(view.student)
        self._annotations.append(self._settled(view.annotation, seed))
        self.keys.append(sample.key)
        self.seeds.append(seed)
        if patient is not None:
            self.patients.append(patient)

    def skip(self, position: int, error: BadSample) -> None:
        self.skipped.append(Skipped(position, error.reason, str(error)))

    def batch(self, task: str, positions: list[int]) -> Batch:
        target: Target = MulticlassTarget(torch.zeros(0, dtype=torch.int64))
        if self.keys:  # else all were skipped, and the batch only carries the news
            target = _TARGETS[self.transform.kind](self._annotations)
        return Batch(
            task=task,
            keys=self.keys,
            images=self._student.tensor(),
            teacher_images=self._teacher.tensor() if self.transform.training else None,
            target=target,
            positions=positions,
            seeds=self.seeds,
            skipped=self.skipped,
            patients=self.patients,
        )

    def _settled(self, annotation: Any, seed: int) -> Any:
        if self.transform.kind != "multilabel":
            return annotation
        return unknown(annotation) if self.uncertain is None else self.uncertain(annotation, seed)


class _Stack:
    """The images of a batch, each copied to its place while the processor's cache holds it."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.filled = count, size, 0
        self.array = np.empty((0, 1, size, size), np.uint8)

    def room(self) -> np.ndarray | None:
        """Where the next image goes, (S, S), while all are gray."""
        if len(self.array) > self.filled and self.array.shape[1] == 1:
            return self.array[self.filled, 0]
        return None

    def add(self, image: np.ndarray) -> None:
        channels = image.shape[2]
        if not self.filled:
            self.array = np.empty((self.count, channels, self.size, self.size), np.uint8)
        elif channels > self.array.shape[1]:  # colour after gray: all get three channels
            self.array = np.repeat(self.array, channels, axis=1)
        if channels == len(self.array[0]) > 1:
            cv2.split(image, list(self.array[self.filled]))  # a ninth of the time of numpy's way
        elif not np.may_share_memory(image, self.array):  # else it was made in its place
            self.array[self.filled] = image.transpose(2, 0, 1)
        self.filled += 1

    def tensor(self) -> Tensor:
        """(B, C, S, S) uint8; one channel where all images are gray."""
        return torch.from_numpy(self.array[: self.filled])


def _multilabel(annotations: list[Any]) -> Target:
    return MultilabelTarget(*_with_known(annotations))


def _multiclass(annotations: list[Any]) -> Target:
    return MulticlassTarget(labels=torch.tensor(annotations))


def _detection(annotations: list[Any]) -> Target:
    known = [image.known for image in annotations]
    return DetectionTarget(
        boxes=[torch.from_numpy(image.boxes) for image in annotations],
        labels=[torch.from_numpy(image.labels) for image in annotations],
        known=_stack_or_none(known, True),
    )


def _segmentation(annotations: list[Any]) -> Target:
    return SegmentationTarget(
        masks=torch.from_numpy(np.stack([image.masks for image in annotations])),
        known=torch.from_numpy(np.stack([image.known for image in annotations])),
        raters=_stack_or_none([image.raters for image in annotations], 1),
    )


def _values(annotations: list[Any]) -> Target:
    return ValuesTarget(*_with_known(annotations))


def _points(annotations: list[Any]) -> Target:
    points, known = _with_known(annotations)
    return PointsTarget(points, known[..., 0])


def _with_known(arrays: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """The arrays with 0 for NaN, and where they were known."""
    stack = np.stack(arrays)
    known = ~np.isnan(stack)
    return torch.from_numpy(np.where(known, stack, 0)), torch.from_numpy(known)


def _stack_or_none(arrays: list[np.ndarray | None], usual: int) -> Tensor | None:
    """(B, K); None where no image has one, and `usual` for the images that have none."""
    given = [array for array in arrays if array is not None]
    if not given:
        return None
    rest = np.full_like(given[0], usual)
    return torch.from_numpy(np.stack([rest if array is None else array for array in arrays]))


_TARGETS: dict[Kind, Callable[[list[Any]], Target]] = {
    "multilabel": _multilabel,
    "multiclass": _multiclass,
    "ordinal": _multiclass,
    "detection": _detection,
    "segmentation": _segmentation,
    "values": _values,
    "points": _points,
}
