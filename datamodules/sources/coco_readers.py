"""Readers of COCO jsons: boxes, and polygons or RLEs as masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.imaging.images import encode_png
from datamodules.sources.coco import CocoFile
from datamodules.sources.reader import Found, ImageFile, Reader, fill


class CocoReader(Reader):
    """A COCO json, or one a split. Images that it lists without an annotation are annotated
    negatives; images that it does not list are not annotated."""

    options = required = frozenset({"coco"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._files: dict[Path, CocoFile] = {}

    def notes(self, images: Mapping[str, str]) -> list[str]:
        lines = []
        for split in sorted(set(images.values())):
            file = self.file(split)
            mine = {name for name in images if not self._per_split or images[name] == split}
            if left := file.listed - mine:
                lines.append(f"{file.path}: {len(left)} of its images are not used, as {min(left)}")
            if partial := file.left_out():
                lines.append(
                    f"{file.path}: {partial} annotations are left out, since their class is in "
                    "their image's not_exhaustive_category_ids"
                )
        return lines if self._per_split else list(dict.fromkeys(lines))

    def file(self, split: str) -> CocoFile:
        path = self.root / fill(self.config["coco"], self.place, split=split)
        if path not in self._files:
            self._files[path] = CocoFile(path, self.spec)
        return self._files[path]

    @property
    def _per_split(self) -> bool:
        return "{split}" in self.config["coco"]


class DetectionReader(CocoReader):
    """The boxes, `bbox`. Where an image has LVIS's `neg_category_ids` or
    `not_exhaustive_category_ids`, only some of its classes are known: see `CocoFile.known`."""

    def _read(self, image: ImageFile) -> Found:
        file = self.file(image.split)
        boxes = file.boxes(image.name, image.size)
        if boxes is None or (known := file.known(image.name)) is None:
            return Found(boxes)
        return Found({"boxes": boxes, "known": known} if known else None)


class CocoMaskReader(CocoReader):
    """The regions, `segmentation`: polygons or RLE; those of one class are united. Every class of
    a listed image is known, but where LVIS's keys say otherwise, as for boxes."""

    def _read(self, image: ImageFile) -> Found:
        file = self.file(image.split)
        masks = file.masks(image.name, image.size)
        if masks is None:
            return Found()
        pngs = {name: encode_png(mask.astype(bool)) for name, mask in masks.items() if mask.any()}
        known = file.known(image.name)
        known = list(self.spec.classes) if known is None else known
        return Found({"known": known} if known else None, pngs)
