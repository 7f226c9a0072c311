"""What an annotation is, and the way from class NAMES (in a shard) to arrays (in memory).

Shape letters: K classes in the order of `AnnotationSpec.classes`, N boxes, H x W pixels of the
stored image.

kind          in a shard's json                          in memory
multilabel    {"Effusion": 1, "Mass": 0}, unknown absent (K,) float32, NaN where unknown
multiclass    "PA"                                       int, index into classes
detection     [{"class": "nodule", "bbox": [x, y, w, h]}]  Boxes
segmentation  {"known": ["heart"]} and one PNG a class   Masks
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ark.types import KINDS, ConfigError, Kind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Boxes(NamedTuple):
    """All objects of one image; none is an annotated negative."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, pixels of the stored image
    labels: np.ndarray  # (N,) int64


class Masks(NamedTuple):
    """One binary mask a class; masks of different classes may overlap."""

    masks: np.ndarray  # (K, H, W) uint8, 0 or 1
    known: np.ndarray  # (K,) bool; False = this class was not annotated on this image


Annotation = np.ndarray | int | Boxes | Masks


@dataclass(frozen=True)
class AnnotationSpec:
    """The kind and the class names of one annotation of a dataset."""

    kind: Kind
    classes: tuple[str, ...]

    @classmethod
    def checked(cls, kind: Any, classes: Iterable[Any], where: str) -> AnnotationSpec:
        """Builds a spec from what a user wrote.

        Raises:
            ConfigError: an unknown kind; no class, one that is not text, or one given twice.
        """
        if kind not in KINDS:
            raise ConfigError(f"{where}: kind is {kind!r}; expected one of {list(KINDS)}")
        names = [classes] if isinstance(classes, str) else list(classes)
        if not names:
            raise ConfigError(f"{where}: classes is empty; list the class names")
        if odd := [name for name in names if not isinstance(name, str) or not name.strip()]:
            raise ConfigError(f"{where}: class {odd[0]!r} is not a name; write it in quotes")
        # webdataset lower-cases member names, so "Mass" and "mass" would be one member
        folded = [name.casefold() for name in names]
        if twice := [name for name in names if folded.count(name.casefold()) > 1]:
            raise ConfigError(
                f"{where}: classes names {twice[0]!r} more than once (case is ignored)"
            )
        return cls(kind, tuple(names))

    def index(self, name: Any, where: str) -> int:
        """The position of class `name`; ConfigError where it is not one of the classes."""
        try:
            return self.classes.index(name)
        except ValueError:
            raise ConfigError(
                f"{where}: class {name!r} is not one of the classes {list(self.classes)}"
            ) from None


class Tally(NamedTuple):
    """What one sample says about the classes, for counting."""

    known: Iterable[str]  # classes that somebody looked for
    present: Iterable[str]  # classes that the image shows; in detection one entry a box


def check_name(name: str, where: str) -> str:
    """Annotation names become parts of member names in a tar: no dots, slashes or blanks."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {name!r} is not a valid name; use letters, digits, '_' and '-', and begin "
            "with a letter or a digit"
        )
    return name


def tally(spec: AnnotationSpec, value: Any, masks: Iterable[str]) -> Tally:
    """Which classes a stored `value` knows and shows; `masks`: classes that have a mask member."""
    if spec.kind == "multilabel":
        return Tally(value, [name for name, label in value.items() if label == 1])
    if spec.kind == "multiclass":
        return Tally(spec.classes, [value])
    if spec.kind == "detection":
        return Tally(spec.classes, [box["class"] for box in value])
    return Tally(value["known"], list(masks))


def to_arrays(
    spec: AnnotationSpec,
    value: Any,
    masks: Mapping[str, np.ndarray],
    size: tuple[int, int],
    where: str,
) -> Annotation:
    """Turns a stored `value` into arrays.

    Args:
        masks: class -> (H, W) uint8; a known class without a mask is empty.
        size: (H, W) of the stored image.
        where: names the sample in error messages.
    """
    if spec.kind == "multilabel":
        return _labels(spec, value, where)
    if spec.kind == "multiclass":
        return spec.index(value, where)
    if spec.kind == "detection":
        return _boxes(spec, value, where)
    return _masks(spec, value, masks, size, where)


def _labels(spec: AnnotationSpec, value: Mapping[str, int], where: str) -> np.ndarray:
    labels = np.full(len(spec.classes), np.nan, np.float32)
    for name, label in value.items():
        labels[spec.index(name, where)] = label
    return labels


def _boxes(spec: AnnotationSpec, value: list[dict[str, Any]], where: str) -> Boxes:
    boxes = np.array([box["bbox"] for box in value], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([spec.index(box["class"], where) for box in value], np.int64)
    return Boxes(boxes, labels)


def _masks(
    spec: AnnotationSpec,
    value: Mapping[str, Any],
    masks: Mapping[str, np.ndarray],
    size: tuple[int, int],
    where: str,
) -> Masks:
    stack = np.zeros((len(spec.classes), *size), np.uint8)
    for name, mask in masks.items():
        if mask.shape != size:
            raise ConfigError(f"{where}: mask of {name!r} is {mask.shape}, its image {size} (H, W)")
        stack[spec.index(name, where)] = mask
    known = np.array([name in value["known"] for name in spec.classes])
    return Masks(stack, known)
