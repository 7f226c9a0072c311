"""Boxes and masks of a COCO json, checked against the YAML's classes and the images' sizes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec
from datamodules.arrays import box_inside
from datamodules.imaging.masks import decode_polygons, decode_rle

_PARTS = {
    "images": {"id", "file_name"},
    "annotations": {"id", "image_id", "category_id"},
    "categories": {"id", "name"},
}


class CocoFile:
    """The annotations of one json, by file name.

    Raises:
        ConfigError: not COCO, categories that differ from the classes, or an annotation of no
            image.
    """

    def __init__(self, path: Path, spec: AnnotationSpec) -> None:
        self.path, self._classes = path, spec.classes
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

    def known(self, name: str) -> list[str] | None:
        """The classes that were looked for exhaustively on the listed image `name`; None: all.

        As LVIS states it for each image: `neg_category_ids` were looked for and not found,
        `not_exhaustive_category_ids` have objects without an annotation; of the other categories
        only those with an annotation were looked for.
        """
        image = self._images[name]
        if not {"neg_category_ids", "not_exhaustive_category_ids"} & set(image):
            return None
        place = f"{self.path}: {name}"
        looked_for = set(self._classes)
        if "neg_category_ids" in image:
            shown = {self._class(a, self._place(a, name)) for a in self._annotations[image["id"]]}
            looked_for = shown | self._named(image, "neg_category_ids", place)
        looked_for -= self._named(image, "not_exhaustive_category_ids", place)
        return [one for one in self._classes if one in looked_for]

    def boxes(self, name: str, size: tuple[int, int]) -> list[dict[str, Any]] | None:
        """The boxes of image `name` as [{"class", "bbox": [x, y, w, h]}]; None if it is not listed.
        Boxes of classes that are not `known` are left out.

        Args:
            size: (H, W) of the image as stored; a box must lie inside.
        """
        found = self._of(name, size)
        return None if found is None else [self._box(a, name, size) for a in found]

    def masks(self, name: str, size: tuple[int, int]) -> dict[str, np.ndarray] | None:
        """Class -> (H, W) uint8, 0 or 1: the union of its regions; None if image `name` is not
        listed. Regions of classes that are not `known` are left out.

        Args:
            size: (H, W) of the image as stored; RLEs must have it, polygons must lie inside.
        """
        found = self._of(name, size)
        if found is None:
            return None
        masks: dict[str, np.ndarray] = {}
        for annotation in found:
            mask = self._mask(annotation, name, size)
            of_class = self._class(annotation, self._place(annotation, name))
            masks[of_class] = masks[of_class] | mask if of_class in masks else mask
        return masks

    def left_out(self) -> int:
        """Annotations of classes that are not `known` on their image."""
        return sum(len(self._annotations[self._images[n]["id"]]) for n in self._images) - sum(
            len(self._exhaustive(name)) for name in self._images
        )

    def _of(self, name: str, size: tuple[int, int]) -> list[dict[str, Any]] | None:
        """The annotations of image `name`; None if it is not listed."""
        if name not in self._images:
            return None
        image = self._images[name]
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated != size:
            raise ConfigError(
                f"{self.path}: {name} is stated as {stated[1]}x{stated[0]}, the file is "
                f"{size[1]}x{size[0]} (width x height); scale the boxes to the stored image"
            )
        return self._exhaustive(name)

    def _exhaustive(self, name: str) -> list[dict[str, Any]]:
        """The annotations of a listed image whose class is known on it."""
        found, known = self._annotations[self._images[name]["id"]], self.known(name)
        if known is None:
            return found
        return [a for a in found if self._class(a, self._place(a, name)) in known]

    def _named(self, image: dict[str, Any], key: str, place: str) -> set[str]:
        ids = image.get(key, [])
        if not isinstance(ids, list) or any(i not in [*self._categories] for i in ids):
            raise ConfigError(
                f"{place}: {key} is {ids}; expected a list of category ids, of "
                f"{sorted(self._categories)}"
            )
        return {self._categories[i] for i in ids}

    def _place(self, annotation: dict[str, Any], name: str) -> str:
        return f"{self.path}: annotation {annotation['id']} of {name}"

    def _class(self, annotation: dict[str, Any], place: str) -> str:
        if annotation["category_id"] not in self._categories:
            raise ConfigError(f"{place}: category_id {annotation['category_id']} does not exist")
        return self._categories[annotation["category_id"]]

    def _mask(self, annotation: dict[str, Any], name: str, size: tuple[int, int]) -> np.ndarray:
        place = self._place(annotation, name)
        region = annotation.get("segmentation")
        if not isinstance(region, dict):
            return decode_polygons(region, size, place)
        mask = decode_rle(region, place)
        if mask.shape != size:
            raise ConfigError(
                f"{place}: the RLE's size is {list(mask.shape)}, its image {list(size)} (H, W); "
                "they must be equal"
            )
        return mask

    def _box(self, annotation: dict[str, Any], name: str, size: tuple[int, int]) -> dict[str, Any]:
        place = self._place(annotation, name)
        if annotation.get("iscrowd"):
            raise ConfigError(f"{place}: iscrowd boxes are not supported; remove or split it")
        of_class = self._class(annotation, place)
        return {"class": of_class, "bbox": box_inside(annotation.get("bbox"), size, place)}

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


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such COCO json; correct `coco` in the source") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a json file ({error})") from error
    for part, keys in _PARTS.items():
        if not isinstance(content, dict) or part not in content:
            raise ConfigError(f"{path}: no {part!r}; expected a COCO json")
        entries = content[part]
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and keys <= set(entry) for entry in entries
        ):
            raise ConfigError(
                f"{path}: {part} must be a list of objects with {sorted(keys)}; export it again"
            )
    return content
