"""What an annotation is, and the way from class NAMES (in a shard) to arrays (in memory).

Shape letters: K classes in the order of `AnnotationSpec.classes`, N boxes, H x W pixels of the
stored image.

kind          in a shard's json                          in memory
multilabel    {"Effusion": 1, "Mass": 0}, unknown absent (K,) float32, NaN where unknown
multiclass    "PA"                                       int, index into classes
detection     [{"class": "nodule", "bbox": [x, y, w, h]}]  Boxes
segmentation  {"known": ["heart"]} and one PNG a class   Masks

`datamodules.tars.stored` brings what other tools store into these forms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ark.types import KINDS, ConfigError, Kind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ROUNDING = 1.0  # pixels by which annotation tools may overshoot the border; cut off


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

    @property
    def spatial(self) -> bool:
        """Whether it says where in the image something is."""
        return self.kind in ("detection", "segmentation")

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
    """Turns a stored `value` into arrays, and checks it: a shard may be anybody's.

    Args:
        masks: class -> (H, W) uint8; a known class without a mask is empty.
        size: (H, W) of the stored image.
        where: names the sample in error messages.

    Raises:
        ConfigError: an unknown class, a label that is no 0 or 1, a box that is degenerate or leaves
            the image, or a mask of another size.
    """
    if spec.kind == "multilabel":
        return _labels(spec, value, where)
    if spec.kind == "multiclass":
        return spec.index(value, where)
    if spec.kind == "detection":
        return _boxes(spec, value, size, where)
    return _masks(spec, value, masks, size, where)


def box_inside(box: Any, size: tuple[int, int], where: str) -> list[float]:
    """`box` [x, y, w, h] cut to an image of `size` (H, W); up to one pixel may be cut.

    Raises:
        ConfigError: degenerate, not four finite numbers, or outside by more than a pixel.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ConfigError(f"{where}: bbox is {box}; expected four numbers [x, y, w, h]")
    x1, y1, x2, y2 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    height, width = size
    if box[2] <= 0 or box[3] <= 0:
        raise ConfigError(f"{where}: bbox {box} has no area; expected [x, y, w, h] with w, h > 0")
    if min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
        raise ConfigError(
            f"{where}: bbox {box} [x, y, w, h] leaves its image of {width}x{height} pixels"
        )
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        raise ConfigError(f"{where}: bbox {box} lies on the border of its {width}x{height} image")
    return [round(number, 4) for number in (x1, y1, x2 - x1, y2 - y1)]


def _is_finite(number: Any) -> bool:
    # a bool is an int in Python, and 10**400 is no float
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and abs(number) < 1e9 and math.isfinite(number)


def _labels(spec: AnnotationSpec, value: Mapping[str, int], where: str) -> np.ndarray:
    labels = np.full(len(spec.classes), np.nan, np.float32)
    for name, label in value.items():
        if label not in (0, 1):
            raise ConfigError(f"{where}: label of {name!r} is {label!r}; expected 0 or 1")
        labels[spec.index(name, where)] = label
    return labels


def _boxes(
    spec: AnnotationSpec, value: list[dict[str, Any]], size: tuple[int, int], where: str
) -> Boxes:
    found = [box_inside(box["bbox"], size, where) for box in value]
    boxes = np.array(found, np.float32).reshape(-1, 4)
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
            raise ConfigError(
                f"{where}: the mask of {name!r} is {mask.shape[1]}x{mask.shape[0]}, its image "
                f"{size[1]}x{size[0]} (width x height); they must be equal"
            )
        stack[spec.index(name, where)] = mask
    known = np.array([name in value["known"] for name in spec.classes])
    return Masks(stack, known)
