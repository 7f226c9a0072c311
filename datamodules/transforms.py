"""From a decoded sample to what the network sees, with augmentation drawn from a seed.

Shape letters: see `ark.types`. Every view is S x S pixels: the whole image, or in training a part
of it (`Augment.crop`), resized without regard to its aspect ratio (as the papers do).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# albumentations asks a server for its newest version when it is imported; a cluster has no internet
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np

from ark.resizing import resize
from ark.seeds import seed_of
from ark.types import Kind
from datamodules.annotations import Boxes
from datamodules.augment import Augment as Augment  # its views are made here
from datamodules.crop import MIN_VISIBLE, WHOLE, Crop


@dataclass
class View:
    """One sample as the network sees it; C = 1 for a gray image, 3 for RGB."""

    student: np.ndarray  # (S, S, C) uint8
    teacher: np.ndarray | None  # (S, S, C) uint8: see `Augment.teacher_view`
    annotation: Any  # as in Sample.annotation, in pixels of the student's view


class Transform:
    """Resizes and, in training, crops and augments; None in place of `augment` only resizes."""

    def __init__(self, kind: Kind, size: int, augment: Augment | None) -> None:
        self.kind, self.size = kind, size
        self.training = augment is not None
        boxes = A.BboxParams("pascal_voc", label_fields=["labels"], min_visibility=MIN_VISIBLE)
        points = A.KeypointParams("xy", remove_invisible=False)  # K stay K
        self._crop = self._geometric = self._photometric = None
        self._teacher_view = "same" if augment is None else augment.teacher_view
        self._before = 0 if augment is None else round(size * augment.resize)  # R
        if augment is not None and augment.cropped:
            self._crop = A.RandomResizedCrop((size, size), scale=augment.crop)
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
        moved = self._crop is not None or self._geometric is not None
        differs = self._photometric is not None or (self._teacher_view == "whole" and moved)
        return differs and self._teacher_view != "same"

    @property
    def reads(self) -> int:
        """Pixels of a side that a decoded image should have at least."""
        return self._before or self.size

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
        part, crop = self._cropped(image, seed)
        resized = plain = resize(part, self.size, out)
        annotation = crop.place(self.kind, annotation, stored, self.size)
        if self._geometric is not None:
            _seed(self._geometric, seed)
            plain, annotation = self._move(plain, annotation)
        student = plain
        if self._photometric is not None:
            _seed(self._photometric, seed_of("photometric", seed))
            student = self._photometric(image=plain)["image"]
        if not self.training:
            return View(student, None, annotation)
        if self._teacher_view == "whole":
            whole = resized if self._crop is None else resize(image, self.size, None)
            return View(student, whole, annotation)
        return View(student, plain if self._teacher_view == "geometry" else student, annotation)

    def _cropped(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, Crop]:
        """A drawn part of the image, and which."""
        if self._crop is None:
            return image, WHOLE
        if self._before:
            image = resize(image, self._before, None)
        height, width = image.shape[:2]
        self._crop.set_random_seed(seed_of("crop", seed) % 2**32)
        drawn = self._crop.get_params_dependent_on_data({"shape": image.shape}, {})
        left, top, right, bottom = drawn["crop_coords"]
        part = image[top:bottom, left:right]
        return part, Crop(left / width, top / height, right / width, bottom / height)

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


def _seed(steps: A.Compose, seed: int) -> None:
    """albumentations starts every step from the same seed, and so they would draw alike: a flip
    would tell how far the image was turned, the choice of one step how much it changes.

    Brightness and gamma without `one_of` do draw alike, as they did in all runs so far.
    """
    steps.set_random_seed(seed % 2**32)
    first = steps.transforms[0]
    flips = [step for step in steps.transforms if isinstance(step, A.HorizontalFlip)]
    for step in first.transforms if isinstance(first, A.OneOf) else flips:
        step.set_random_seed(seed_of("apart", seed) % 2**32)


def _geometric(augment: Augment) -> list[Any]:
    steps: list[Any] = []
    if augment.affine:
        steps.append(
            A.Affine(
                rotate=(-augment.rotate, augment.rotate),
                translate_percent=(-augment.shift, augment.shift),
                scale=(1 - augment.scale, 1 + augment.scale),
                rotate_method="ellipse",  # the box of a rotated box would be far too large
                p=augment.affine_p,
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
    return [A.OneOf(steps, p=augment.one_of)] if augment.one_of else steps
