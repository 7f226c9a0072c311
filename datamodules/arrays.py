"""From a stored annotation, in class names, to arrays: checked, since a shard may be anybody's.

Shape letters and forms: see `datamodules.annotations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import (
    MOST_RATERS,
    UNCERTAIN,
    Annotation,
    AnnotationSpec,
    Boxes,
    Masks,
    listed_boxes,
)

_ROUNDING = 1.0  # pixels by which annotation tools may overshoot the border; cut off


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

    Raises:
        ConfigError: an unknown class; a label that is no 0, 1 or -1; a box that is degenerate,
            leaves the image or is of a class that nobody looked for; a mask of another size or one
            that counts more raters than there were; a value that is no finite number; a point
            outside the image.
    """
    if spec.kind == "multilabel":
        return _labels(spec, value, where)
    if spec.kind in ("multiclass", "ordinal"):
        return spec.index(value, where)
    if spec.kind == "detection":
        return _boxes(spec, value, size, where)
    if spec.kind == "segmentation":
        return _masks(spec, value, masks, size, where)
    if spec.kind == "values":
        return _values(spec, value, where)
    return _points(spec, value, size, where)


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


def point_inside(point: Any, size: tuple[int, int], where: str) -> list[float]:
    """`point` [x, y] cut to an image of `size` (H, W); up to one pixel may be cut.

    Raises:
        ConfigError: not two finite numbers, or outside by more than a pixel.
    """
    if not isinstance(point, list) or len(point) != 2 or not all(map(_is_finite, point)):
        raise ConfigError(f"{where}: point is {point}; expected two numbers [x, y]")
    (x, y), (height, width) = point, size
    if min(x, y) < -_ROUNDING or x > width + _ROUNDING or y > height + _ROUNDING:
        raise ConfigError(
            f"{where}: point {point} [x, y] leaves its image of {width}x{height} pixels"
        )
    return [round(min(max(x, 0), width), 4), round(min(max(y, 0), height), 4)]


def check_value(value: Any, where: str) -> float:
    """`value` where it is a finite number, also as a float32; else ConfigError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= float(np.finfo(np.float32).max):  # 10**400, NaN
        raise ConfigError(f"{where}: value is {value!r}; expected a finite number")
    return float(value)


def _is_finite(number: Any) -> bool:
    # a bool is an int in Python, and 10**400 is no float
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and abs(number) < 1e9 and math.isfinite(number)


def _labels(spec: AnnotationSpec, value: Mapping[str, int], where: str) -> np.ndarray:
    labels = np.full(len(spec.classes), np.nan, np.float32)
    for name, label in value.items():
        if label not in (0, 1, UNCERTAIN):
            raise ConfigError(
                f"{where}: label of {name!r} is {label!r}; expected 0, 1 or -1 (uncertain)"
            )
        labels[spec.index(name, where)] = label
    return labels


def _boxes(spec: AnnotationSpec, value: Any, size: tuple[int, int], where: str) -> Boxes:
    listed, known = listed_boxes(value), None
    labels = np.array([spec.index(box["class"], where) for box in listed], np.int64)
    if isinstance(value, dict):
        known = _known(spec, value["known"], where)
        if len(odd := labels[~known[labels]]):
            raise ConfigError(
                f"{where}: a box of {spec.classes[odd[0]]!r}, which is not in `known` "
                f"{value['known']}; add it there, or remove the box"
            )
    found = [box_inside(box["bbox"], size, where) for box in listed]
    boxes = np.array(found, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Boxes(boxes, labels, known)


def _known(spec: AnnotationSpec, names: list[str], where: str) -> np.ndarray:
    known = np.zeros(len(spec.classes), bool)
    known[[spec.index(name, where) for name in names]] = True
    return known


def _masks(
    spec: AnnotationSpec,
    value: Mapping[str, Any],
    masks: Mapping[str, np.ndarray],
    size: tuple[int, int],
    where: str,
) -> Masks:
    raters = value.get("raters") or {}
    stack = np.zeros((len(spec.classes), *size), np.uint8)
    for name, mask in masks.items():
        if mask.shape != size:
            raise ConfigError(
                f"{where}: the mask of {name!r} is {mask.shape[1]}x{mask.shape[0]}, its image "
                f"{size[1]}x{size[0]} (width x height); they must be equal"
            )
        stack[spec.index(name, where)] = mask
    known = np.array([name in value["known"] for name in spec.classes])
    return Masks(stack, known, _raters(spec, raters, known, where) if raters else None)


def _raters(
    spec: AnnotationSpec, raters: Mapping[str, Any], known: np.ndarray, where: str
) -> np.ndarray:
    counts = np.ones(len(spec.classes), np.uint8)
    for name, count in raters.items():
        if not known[spec.index(name, where)]:
            raise ConfigError(f"{where}: raters names {name!r}, which is not in `known`; add it")
        counts[spec.index(name, where)] = check_raters(name, count, where)
    return counts


def check_raters(name: str, count: Any, where: str) -> int:
    """`count` where it can be a number of raters; else ConfigError."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_RATERS:
        raise ConfigError(
            f"{where}: raters of {name!r} is {count!r}; expected 1 to {MOST_RATERS} readers"
        )
    return count


def _values(spec: AnnotationSpec, value: Mapping[str, Any], where: str) -> np.ndarray:
    values = np.full(len(spec.classes), np.nan, np.float32)
    for name, number in value.items():
        values[spec.index(name, where)] = check_value(number, f"{where}, {name!r}")
    return values


def _points(
    spec: AnnotationSpec, value: Mapping[str, Any], size: tuple[int, int], where: str
) -> np.ndarray:
    points = np.full((len(spec.classes), 2), np.nan, np.float32)
    for name, point in value.items():
        points[spec.index(name, where)] = point_inside(point, size, f"{where}, {name!r}")
    return points
