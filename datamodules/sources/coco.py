"""Boxes of a COCO json, checked against the classes of the YAML and the sizes of the images."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec

_ROUNDING = 1.0  # pixels by which annotation tools may overshoot the border; cut off


class CocoFile:
    """The boxes of one json, by file name.

    Raises:
        ConfigError: not COCO, categories that differ from the classes, or a box of no image.
    """

    def __init__(self, path: Path, spec: AnnotationSpec) -> None:
        self.path = path
        content = _load(path)
        self._categories = {c["id"]: c["name"] for c in content["categories"]}
        self._check_categories(spec)
        self._images = {image["file_name"]: image for image in content["images"]}
        ids = {image["id"] for image in content["images"]}
        if len(ids) != len(content["images"]) or len(self._images) != len(ids):
            raise ConfigError(f"{path}: two images share an id or a file_name; make them unique")
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["image_id"] not in ids:
                raise ConfigError(
                    f"{path}: annotation {annotation['id']} is of image_id "
                    f"{annotation['image_id']}, which `images` does not list"
                )
            self._annotations[annotation["image_id"]].append(annotation)

    @property
    def listed(self) -> set[str]:
        """File names of the annotated images, negatives included."""
        return set(self._images)

    def boxes(self, name: str, size: tuple[int, int]) -> list[dict[str, Any]] | None:
        """The boxes of image `name` as [{"class", "bbox": [x, y, w, h]}]; None if it is not listed.

        Args:
            size: (H, W) of the image as stored; a box must lie inside.
        """
        if name not in self._images:
            return None
        image = self._images[name]
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated != size:
            raise ConfigError(
                f"{self.path}: {name} is stated as {stated[1]}x{stated[0]}, the file is "
                f"{size[1]}x{size[0]} (width x height); scale the boxes to the stored image"
            )
        return [self._box(a, name, size) for a in self._annotations[image["id"]]]

    def _box(self, annotation: dict[str, Any], name: str, size: tuple[int, int]) -> dict[str, Any]:
        place = f"{self.path}: annotation {annotation['id']} of {name}"
        if annotation.get("iscrowd"):
            raise ConfigError(f"{place}: iscrowd boxes are not supported; remove or split it")
        if annotation["category_id"] not in self._categories:
            raise ConfigError(f"{place}: category_id {annotation['category_id']} does not exist")
        box = inside(annotation["bbox"], size, place)
        return {"class": self._categories[annotation["category_id"]], "bbox": box}

    def _check_categories(self, spec: AnnotationSpec) -> None:
        names = set(self._categories.values())
        if extra := sorted(names - set(spec.classes)):
            raise ConfigError(
                f"{self.path}: category {extra[0]!r} is not in `classes` {list(spec.classes)}; "
                "add it there or remove it from the json"
            )
        if missing := sorted(set(spec.classes) - names):
            raise ConfigError(
                f"{self.path}: `classes` names {missing[0]!r}, the json has {sorted(names)}"
            )


def inside(box: list[float], size: tuple[int, int], place: str) -> list[float]:
    """`box` [x, y, w, h] cut to an image of `size` (H, W); up to one pixel may be cut.

    Raises:
        ConfigError: degenerate, not four finite numbers, or outside by more than a pixel.
    """
    if len(box) != 4 or not all(math.isfinite(number) for number in box):
        raise ConfigError(f"{place}: bbox is {box}; expected four numbers [x, y, w, h]")
    x1, y1, x2, y2 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    height, width = size
    if box[2] <= 0 or box[3] <= 0:
        raise ConfigError(f"{place}: bbox {box} has no area; expected [x, y, w, h] with w, h > 0")
    if min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
        raise ConfigError(
            f"{place}: bbox {box} [x, y, w, h] leaves its image of {width}x{height} pixels"
        )
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        raise ConfigError(f"{place}: bbox {box} lies on the border of its {width}x{height} image")
    return [round(number, 4) for number in (x1, y1, x2 - x1, y2 - y1)]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such COCO json; correct `coco` in the source") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not a json file ({error})") from error
    if missing := [k for k in ("images", "annotations", "categories") if k not in content]:
        raise ConfigError(f"{path}: no {missing[0]!r}; expected a COCO detection json")
    return content
