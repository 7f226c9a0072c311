"""From a decoded sample to what the network sees, with augmentation drawn from a seed.

Shape letters: see `ark.types`. Every view is S x S pixels, the whole image resized without
regard to its aspect ratio (as the papers do).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# albumentations asks a server for its newest version when it is imported; a cluster has no internet
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from ark.seeds import seed_of
from ark.types import Kind
from datamodules.annotations import Boxes


@dataclass(frozen=True)
class Augment:
    """How strongly the training views vary. Zero switches a part off.

    Args:
        rotate: degrees, drawn from [-rotate, rotate].
        shift: share of the side, drawn from [-shift, shift] for each axis.
        scale: zoom, drawn from [1 - scale, 1 + scale].
        brightness: student's view only: brightness and contrast, drawn from [-b, b].
        gamma: student's view only: percent around 100.
        flip: share of images mirrored left to right; 0 by default because left and right lung
            are classes. Classes, boxes, masks and points keep their names: mirrored, the mask or
            point of a right lung lies where a left lung would.
    """

    rotate: float = 10.0
    shift: float = 0.05
    scale: float = 0.1
    brightness: float = 0.2
    gamma: float = 20.0
    flip: float = 0.0


@dataclass
class View:
    """One sample as the network sees it; C = 1 for a gray image, 3 for RGB."""

    student: np.ndarray  # (S, S, C) uint8
    teacher: np.ndarray | None  # (S, S, C) uint8: same geometry without the change of brightness
    annotation: Any  # as in Sample.annotation, in pixels of the views


class Transform:
    """Resizes and, in training, augments; the student's and the teacher's view share geometry."""

    def __init__(self, kind: Kind, size: int, augment: Augment | None) -> None:
        self.kind, self.size = kind, size
        self.training = augment is not None
        boxes = A.BboxParams("pascal_voc", label_fields=["labels"], min_visibility=0.1)
        points = A.KeypointParams("xy", remove_invisible=False)  # K stay K
        self._geometric = self._photometric = None
        if augment is not None and (steps := _geometric(augment)):
            self._geometric = A.Compose(
                steps,
                bbox_params=boxes if kind == "detection" else None,
                keypoint_params=points if kind == "points" else None,
            )
        if augment is not None and (steps := _photometric(augment)):
            self._photometric = A.Compose(steps)

    @property
    def two_views(self) -> bool:
        """Whether the teacher's view may differ from the student's."""
        return self._photometric is not None

    def __call__(
        self,
        image: np.ndarray,
        annotation: Any,
        seed: int,
        stored: tuple[int, int],
        out: np.ndarray | None = None,
    ) -> View:
        """
        Args:
            image: (h, w, C) uint8 of any size.
            annotation: as the shard reader gives it, in pixels of the stored image.
            seed: decides everything random; the same seed gives the same view.
            stored: (H, W) of the stored image, of which `image` may be a smaller decoding.
            out: (S, S) uint8 that a gray image may be resized into; the student's view then
                shares its memory, unless augmentation moves it on.
        """
        plain = _resize(image, self.size, out)
        annotation = self._resize_annotation(annotation, stored)
        if self._geometric is not None:
            self._geometric.set_random_seed(seed % 2**32)
            plain, annotation = self._move(plain, annotation)
        student = plain
        if self._photometric is not None:
            self._photometric.set_random_seed(seed_of("photometric", seed) % 2**32)
            student = self._photometric(image=plain)["image"]
        return View(student, plain if self.training else None, annotation)

    def _resize_annotation(self, annotation: Any, stored: tuple[int, int]) -> Any:
        """From pixels of the stored image to pixels of the view."""
        if self.kind == "detection":
            height, width = stored
            scale = np.array([self.size / width, self.size / height] * 2, np.float32)
            return annotation._replace(boxes=annotation.boxes * scale)
        if self.kind == "segmentation":
            resized = [_resize_mask(mask, self.size) for mask in annotation.masks]
            return annotation._replace(masks=np.stack(resized))
        if self.kind == "points":
            height, width = stored
            return annotation * np.array([self.size / width, self.size / height], np.float32)
        return annotation

    def _move(self, image: np.ndarray, annotation: Any) -> tuple[np.ndarray, Any]:
        """Carries image and annotation through the drawn geometry."""
        assert self._geometric is not None
        if self.kind == "detection":
            boxes, labels, known = annotation
            moved = self._geometric(image=image, bboxes=boxes, labels=labels)
            return moved["image"], Boxes(
                np.asarray(moved["bboxes"], np.float32).reshape(-1, 4),
                np.asarray(moved["labels"], np.int64),
                known,
            )
        if self.kind == "segmentation":
            moved = self._geometric(image=image, masks=annotation.masks)
            return moved["image"], annotation._replace(masks=np.asarray(moved["masks"]))
        if self.kind == "points":
            known = ~np.isnan(annotation[:, 0])
            # albumentations counts from the middle of the first pixel, we from its corner
            moved = self._geometric(image=image, keypoints=annotation[known] - 0.5)
            return moved["image"], _back(moved["keypoints"], known, self.size)
        return self._geometric(image=image)["image"], annotation


def _back(moved: Any, known: np.ndarray, size: int) -> np.ndarray:
    """(K, 2) float32 of the known points that moved; NaN for those that left the view."""
    points = np.full((len(known), 2), np.nan, np.float32)
    points[known] = np.asarray(moved, np.float32).reshape(-1, 2) + 0.5
    points[((points < 0) | (points > size)).any(axis=1)] = np.nan
    return points


def _resize(image: np.ndarray, size: int, out: np.ndarray | None) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    # below a factor of two bilinear skips no pixel either, in a fifth of the time
    shrink = max(image.shape[:2]) / size
    method = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
    room = out if image.shape[2] == 1 else None
    return cv2.resize(image, (size, size), room, interpolation=method).reshape(size, size, -1)


def _resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    # plain INTER_NEAREST would shift the masks by half a pixel against the image
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def _geometric(augment: Augment) -> list[Any]:
    steps: list[Any] = []
    if augment.rotate or augment.shift or augment.scale:
        steps.append(
            A.Affine(
                rotate=(-augment.rotate, augment.rotate),
                translate_percent=(-augment.shift, augment.shift),
                scale=(1 - augment.scale, 1 + augment.scale),
                rotate_method="ellipse",  # the box of a rotated box would be far too large
                p=1.0,
            )
        )
    if augment.flip:
        steps.append(A.HorizontalFlip(p=augment.flip))
    return steps


def _photometric(augment: Augment) -> list[Any]:
    steps: list[Any] = []
    if augment.brightness:
        limit = (-augment.brightness, augment.brightness)
        steps.append(A.RandomBrightnessContrast(limit, limit, p=0.5))
    if augment.gamma:
        steps.append(A.RandomGamma((100 - augment.gamma, 100 + augment.gamma), p=0.5))
    return steps
