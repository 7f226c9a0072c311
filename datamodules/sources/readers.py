"""How FolderSource finds each kind of annotation: one reader a kind, set up by its YAML entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ark.types import ConfigError
from datamodules.sources.coco_readers import DetectionReader
from datamodules.sources.mask_readers import segmentation_reader
from datamodules.sources.number_readers import PointsReader, ValuesReader
from datamodules.sources.reader import Found, ImageFile, Reader

_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
_BLANK = ("unknown", "absent")


class MultilabelReader(Reader):
    """One column a class: 1, 0, -1 for uncertain, or blank.

    `blank: unknown`, the default: nobody says whether the image shows the class; all blank: the
    image is not annotated. `blank: absent`: the class is not there, a 0.
    """

    options = frozenset({"blank"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.blank = self.config.get("blank", _BLANK[0])
        if self.blank not in _BLANK:
            raise ConfigError(
                f"{self.place}: blank is {self.blank!r}; expected one of {list(_BLANK)}"
            )
        for name in self.spec.classes:
            self.table.require(name, f"classes of {self.place}")

    def _read(self, image: ImageFile) -> Found:
        texts = {name: self.table.value(image.name, name) for name in self.spec.classes}
        labels = {name: _LABELS.get(text) for name, text in texts.items() if text}
        if wrong := [name for name, label in labels.items() if label is None]:
            raise ConfigError(
                f"{self.table.path}: column {wrong[0]!r} of {image.name} is {texts[wrong[0]]!r}; "
                f"expected 1, 0, -1 for uncertain, or blank for {self.blank}"
            )
        if self.blank == "absent":
            labels = {name: labels.get(name, 0) for name in self.spec.classes}
        return Found(labels or None)


class MulticlassReader(Reader):
    """One column with the name of a class; blank: the image is not annotated. Also of ordinal
    classes, which `classes` lists in their order."""

    options = required = frozenset({"column"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.column = str(self.config["column"])
        self.table.require(self.column, f"column of {self.place}")

    def _read(self, image: ImageFile) -> Found:
        text = self.table.value(image.name, self.column)
        if text:
            self.spec.index(text, f"{self.table.path}: column {self.column!r} of {image.name}")
        return Found(text or None)


READERS: dict[str, Callable[..., Reader]] = {
    "multilabel": MultilabelReader,
    "multiclass": MulticlassReader,
    "ordinal": MulticlassReader,
    "detection": DetectionReader,
    "segmentation": segmentation_reader,
    "values": ValuesReader,
    "points": PointsReader,
}
