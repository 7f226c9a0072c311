"""What an annotation is: as a shard stores it, in class NAMES, and as arrays in memory.

Shape letters: K classes in the order of `AnnotationSpec.classes`, N boxes, H x W pixels of the
stored image. Boxes and points are in pixels of the stored image, origin at its top left corner, so
that the middle of the first pixel is at (0.5, 0.5).

kind          in a shard's json                            in memory
multilabel    {"Effusion": 1, "Mass": 0, "Edema": -1}      (K,) float32, NaN where unknown, and
              unknown absent, -1 uncertain                 UNCERTAIN
multiclass    "PA"                                         int, index into classes
ordinal       "mild"                                       int, index into classes
detection     [{"class": "nodule", "bbox": [x, y, w, h]}]  Boxes
              or {"boxes": [...], "known": ["nodule"]}: nobody looked for the other classes
segmentation  {"known": ["heart"]} and one PNG a class     Masks
              with "raters": {"heart": 3} its PNG counts the raters who marked each pixel
values        {"ctr": 0.51}, unknown absent                (K,) float32, NaN where unknown
points        {"apex": [x, y]}, unknown absent             (K, 2) float32, NaN where unknown

`datamodules.tars.stored` brings what other tools store into these forms, `datamodules.arrays` these
forms into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ark.types import KINDS, ConfigError, Kind

UNCERTAIN = -1.0  # a label of which its annotator was not sure; `datamodules.uncertain` decides
MOST_RATERS = 255  # counts of raters are kept in a byte
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Boxes(NamedTuple):
    """All objects of one image; none is an annotated negative."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, pixels of the stored image
    labels: np.ndarray  # (N,) int64
    known: np.ndarray | None = None  # (K,) bool; False = nobody looked for it; None: all known


class Masks(NamedTuple):
    """One mask a class; masks of different classes may overlap."""

    masks: np.ndarray  # (K, H, W) uint8: how many raters put the pixel into the class
    known: np.ndarray  # (K,) bool; False = this class was not annotated on this image
    raters: np.ndarray | None = None  # (K,) uint8 >= 1: who read the image; None: one each


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
        return self.kind in ("detection", "segmentation", "points")

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

    known: Iterable[str]  # classes that somebody looked for, the uncertain ones too
    present: Iterable[str]  # classes that the image shows; in detection one entry a box
    uncertain: Iterable[str] = ()  # classes that it may show


def check_name(name: str, where: str) -> str:
    """Annotation names become parts of member names in a tar: no dots, slashes or blanks."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {name!r} is not a valid name; use letters, digits, '_' and '-', and begin "
            "with a letter or a digit"
        )
    return name


def listed_boxes(value: Any) -> list[dict[str, Any]]:
    """The boxes of a stored detection, in either of its forms."""
    return value["boxes"] if isinstance(value, dict) else value


def tally(spec: AnnotationSpec, value: Any, masks: Iterable[str]) -> Tally:
    """Which classes a stored `value` knows and shows; `masks`: classes that have a mask member.

    Values and points are shown where they are known.
    """
    if spec.kind == "multilabel":
        named = {label: [n for n, one in value.items() if one == label] for label in (1, UNCERTAIN)}
        return Tally(value, named[1], named[UNCERTAIN])
    if spec.kind in ("multiclass", "ordinal"):
        return Tally(spec.classes, [value])
    if spec.kind == "detection":
        known = value["known"] if isinstance(value, dict) else spec.classes
        return Tally(known, [box["class"] for box in listed_boxes(value)])
    if spec.kind == "segmentation":
        return Tally(value["known"], list(masks))
    return Tally(value, value)
