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
import torch
from torch import Tensor

from ark.seeds import seed_of
from ark.types import Kind


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
            are classes.
    """

    rotate: float = 10.0
    shift: float = 0.05
    scale: float = 0.1
    brightness: float = 0.2
    gamma: float = 20.0
    flip: float = 0.0


@dataclass
class View:
    """One sample as the network sees it."""

    student: Tensor  # (3, S, S) uint8
    teacher: Tensor | None  # (3, S, S) uint8: the same geometry without the change of brightness
    annotation: Any  # as in Sample.annotation, moved along with the image


class Transform:
    """Resizes and, in training, augments; the student's and the teacher's view share geometry."""

    def __init__(self, kind: Kind, size: int, augment: Augment | None) -> None:
        self.kind = kind
        self.training = augment is not None
        boxes = A.BboxParams("pascal_voc", label_fields=["labels"], min_visibility=0.1)
        # plain INTER_NEAREST would shift the masks by half a pixel against the image
        resize = A.Resize(size, size, cv2.INTER_AREA, mask_interpolation=cv2.INTER_NEAREST_EXACT)
        steps: list[Any] = [resize]
        self._photometric = None
        if augment is not None:
            steps += _geometric(augment)
            self._photometric = A.Compose(_photometric(augment))
        self._geometric = A.Compose(steps, bbox_params=boxes if kind == "detection" else None)

    def __call__(self, image: np.ndarray, annotation: Any, seed: int) -> View:
        """
        Args:
            image: (h, w, 3) uint8 of any size.
            annotation: as the shard reader gives it, in the frame of `image`.
            seed: decides everything random; the same seed gives the same view.
        """
        self._geometric.set_random_seed(seed % 2**32)
        if self.kind == "detection":
            boxes, labels = annotation
            moved = self._geometric(image=image, bboxes=boxes, labels=labels)
            annotation = (
                np.asarray(moved["bboxes"], np.float32).reshape(-1, 4),
                np.asarray(moved["labels"], np.int64),
            )
        elif self.kind == "segmentation":
            masks, known = annotation
            moved = self._geometric(image=image, masks=list(masks))
            annotation = (np.stack(moved["masks"]), known)
        else:
            moved = self._geometric(image=image)
        plain = moved["image"]
        if self._photometric is None:
            return View(_to_tensor(plain), None, annotation)
        self._photometric.set_random_seed(seed_of("photometric", seed) % 2**32)
        return View(
            _to_tensor(self._photometric(image=plain)["image"]), _to_tensor(plain), annotation
        )


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


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
