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
        return lines if self._per_split else lines[:1]

    def file(self, split: str) -> CocoFile:
        path = self.root / fill(self.config["coco"], self.place, split=split)
        if path not in self._files:
            self._files[path] = CocoFile(path, self.spec)
        return self._files[path]

    @property
    def _per_split(self) -> bool:
        return "{split}" in self.config["coco"]


class DetectionReader(CocoReader):
    """The boxes, `bbox`."""

    def _read(self, image: ImageFile) -> Found:
        return Found(self.file(image.split).boxes(image.name, image.size))


class CocoMaskReader(CocoReader):
    """The regions, `segmentation`: polygons or RLE; those of one class are united. Every class of
    a listed image is known."""

    def _read(self, image: ImageFile) -> Found:
        masks = self.file(image.split).masks(image.name, image.size)
        if masks is None:
            return Found()
        pngs = {name: encode_png(mask.astype(bool)) for name, mask in masks.items() if mask.any()}
        return Found({"known": list(self.spec.classes)}, pngs)
