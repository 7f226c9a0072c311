"""Regions: what a row of a release says about where something is, as boxes and as masks.

`region` of an annotation names the columns, in one of these forms:

    {box: [x, y, w, h]}            four columns, or one that holds the four numbers
    {corners: [x1, y1, x2, y2]}    the same
    {polygon: COLUMN}              [[x, y], ...]
    {rle: COLUMN}                  pairs: pixels skipped since the last run, pixels marked; down
                                   the columns, from the top left corner of the stored image (SIIM-
                                   ACR, CANDID-PTX)

A row without one says that its image shows nothing: blanks, or the "-1" of an RLE. A blank RLE says
nothing at all: an image that has no other is not annotated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.arrays import box_inside
from datamodules.imaging.images import encode_png
from datamodules.imaging.masks import decode_polygons, decode_rle
from datamodules.sources.reader import Found, ImageFile, Reader
from datamodules.sources.records import Records

_FORMS = {"box": 4, "corners": 4, "polygon": 1, "rle": 1}  # columns that hold it


class RegionReader(Reader):
    """Reads the regions of an image's rows, those of known area.

    `class: COLUMN` holds each region's class, `values: {text: class}` where it is named otherwise;
    without it there is one class. `rows: {COLUMN: text}` restricts regions to the rows that hold
    the text (`iscrowd: 0`). Boxes without an area and polygons of less than three points are left
    out and counted in `notes`.
    """

    options = frozenset({"region", "class", "values", "rows"})
    required = frozenset({"region"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.form, self.columns = self._checked_region(self.config["region"])
        self.class_column = self.config.get("class")
        self.values = dict(self.config.get("values") or {})
        self.only_rows = {k: str(v) for k, v in (self.config.get("rows") or {}).items()}
        if self.class_column is None and len(self.spec.classes) > 1:
            raise ConfigError(
                f"{self.place}: {len(self.spec.classes)} classes; name the column that holds each "
                "region's, in `class`"
            )
        for column in (*self.columns, *self.only_rows, self.class_column or self.columns[0]):
            self.records.require(column, self.place)
        for name in self.values.values():
            self.spec.index(name, f"{self.place}: values")

    @property
    def records(self) -> Records:
        if not isinstance(self.table, Records):
            raise ConfigError(f"{self.place}: `region` reads the tables of a ReleaseSource")
        return self.table

    def _read(self, image: ImageFile) -> Found:
        if self.form == "rle" and not any(self.records.texts(image.name, self.columns[0])):
            return Found()
        return self._described(image)

    def _described(self, image: ImageFile) -> Found:
        raise NotImplementedError

    def regions(self, image: ImageFile) -> list[tuple[str, Any]]:
        """(class, region) of each row that has one; boxes and corners as [x, y, w, h]."""
        found = []
        for row in self.records.rows(image.name):
            where = f"{self.records.path}: {image.name}"
            region = self._region(row, where)
            if region is not None and not self._is_degenerate(region):
                found.append((self._class(row, where), region))
        return found

    def notes(self, images: Mapping[str, str]) -> list[str]:
        degenerate = sum(
            region is not None and self._is_degenerate(region)
            for image in images
            for row in self.records.rows(image)
            for region in [self._region(row, f"{self.records.path}: {image}")]
        )
        return [f"{self.place}: {degenerate} regions without an area are left out"] * bool(
            degenerate
        )

    def _region(self, row: Mapping[str, Any], where: str) -> Any:
        if any(str(row[column]).strip() != text for column, text in self.only_rows.items()):
            return None
        values = [row[column] for column in self.columns]
        texts = [value.strip() if isinstance(value, str) else value for value in values]
        if all(text in ("", "-1") for text in texts):
            return None
        value = texts[0] if len(texts) == 1 else texts
        if self.form == "rle":
            return value
        if self.form == "polygon":
            return [_numbers(point, 2, f"{where}: {self.columns[0]}") for point in value]
        numbers = _numbers(value, 4, f"{where}: {self.form} of {list(self.columns)}")
        if self.form == "corners":
            x1, y1, x2, y2 = numbers
            numbers = [x1, y1, x2 - x1, y2 - y1]
        return numbers

    def _is_degenerate(self, region: Any) -> bool:
        if self.form == "polygon":
            return len(region) < 3
        return self.form in ("box", "corners") and min(region[2:]) <= 0

    def _class(self, row: Mapping[str, Any], where: str) -> str:
        if self.class_column is None:
            return self.spec.classes[0]
        text = str(row[self.class_column]).strip()
        name = self.values.get(text, text)
        self.spec.index(name, f"{where}: column {self.class_column!r}")
        return name

    def _mask(self, region: Any, image: ImageFile) -> np.ndarray:
        """(H, W) uint8, 0 or 1."""
        where = f"{self.records.path}: {image.name}"
        if self.form == "rle":
            return decode_relative_rle(region, image.size, where)
        if self.form == "polygon":
            flat = [[number for point in region for number in point]]
            return decode_polygons(flat, image.size, where)
        x, y, w, h = box_inside(region, image.size, where)
        mask = np.zeros(image.size, np.uint8)
        mask[math.floor(y) : math.ceil(y + h), math.floor(x) : math.ceil(x + w)] = 1
        return mask

    def _checked_region(self, region: Any) -> tuple[str, tuple[str, ...]]:
        form = next(iter(region)) if isinstance(region, Mapping) and len(region) == 1 else None
        columns = [] if form is None else region[form]
        columns = [columns] if isinstance(columns, str) else list(columns)
        if form not in _FORMS or len(columns) not in (1, _FORMS[form]):
            raise ConfigError(
                f"{self.place}: region is {region!r}; expected one of {list(_FORMS)} with its "
                "column, or of a box with its four"
            )
        return form, tuple(columns)


class RegionBoxReader(RegionReader):
    """Boxes: the regions' own, or what encloses a polygon or a run-length mask."""

    def _described(self, image: ImageFile) -> Found:
        boxes = []
        for name, region in self.regions(image):
            if self.form in ("polygon", "rle"):
                region = _enclosing(self._mask(region, image))
            if region is not None:
                where = f"{self.records.path}: {image.name}"
                boxes.append({"class": name, "bbox": box_inside(region, image.size, where)})
        return Found(boxes)


class RegionMaskReader(RegionReader):
    """Masks: the union of a class's regions. Every class of every image is known."""

    def _described(self, image: ImageFile) -> Found:
        masks: dict[str, np.ndarray] = {}
        for name, region in self.regions(image):
            mask = self._mask(region, image)
            masks[name] = masks[name] | mask if name in masks else mask
        pngs = {name: encode_png(mask.astype(bool)) for name, mask in masks.items() if mask.any()}
        return Found({"known": list(self.spec.classes)}, pngs)


def decode_relative_rle(text: str, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) uint8, 0 or 1, of pairs "skip length skip length ...": COCO's counts without the last.

    Args:
        size: (H, W) of the image that it was drawn on.

    Raises:
        ConfigError: no pairs of whole numbers, or more pixels than the image has.
    """
    try:
        counts = [int(number) for number in text.split()]
    except ValueError:
        counts = []
    if not counts or len(counts) % 2 or min(counts) < 0:
        raise ConfigError(f"{where}: RLE {text[:60]!r}; expected pairs of whole numbers, or -1")
    rest = size[0] * size[1] - sum(counts)
    if rest < 0:
        raise ConfigError(
            f"{where}: an RLE of {sum(counts)} pixels for an image of {size[1]}x{size[0]}; it was "
            "drawn on another size, use the images of the same release"
        )
    return decode_rle({"size": list(size), "counts": [*counts, rest]}, where)


def _enclosing(mask: np.ndarray) -> list[float] | None:
    """[x, y, w, h] around what `mask` marks; None where it marks nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _numbers(value: Any, count: int, where: str) -> list[float]:
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{where} is {value!r}; expected {count} numbers")
    return numbers
