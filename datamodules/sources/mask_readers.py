"""Readers of masks: a PNG a class, or one label map; and the choice of a reader by its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import MOST_RATERS
from datamodules.imaging.images import encode_png
from datamodules.imaging.masks import decode_label_map, decode_mask
from datamodules.sources.coco_readers import CocoMaskReader
from datamodules.sources.reader import Found, ImageFile, Reader, fill
from datamodules.sources.table import Table


def segmentation_reader(
    name: str, config: Mapping[str, Any], root: Path, table: Table | None
) -> Reader:
    """The reader that the entry asks for: by `masks`, `label_map` or `coco`, exactly one."""
    kinds: dict[str, Callable[..., Reader]] = {
        "masks": MaskFileReader,
        "label_map": LabelMapReader,
        "coco": CocoMaskReader,
    }
    given = [option for option in kinds if option in config]
    if len(given) != 1:
        raise ConfigError(
            f"source annotation {name!r}: has {given or 'no masks'}; expected exactly one of "
            "`masks` (a PNG a class), `label_map` (one PNG of class values) and `coco`"
        )
    return kinds[given[0]](name, config, root, table)


class MaskFileReader(Reader):
    """One binary PNG a class, `masks: masks/{class}/{stem}.png`.

    With `where`, an image of those rows is annotated for every class, and a class without a file is
    empty. Without it, only the classes that have a file are known: no file may as well mean that
    nobody drew it.

    With `raters: [anna, ben]` and `{rater}` in the path each of them has files of their own. With
    `where` all of them read the image; without it those did who have a file of the class.
    """

    options = frozenset({"masks", "raters"})
    required = frozenset({"masks"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if "{class}" not in self.config["masks"] and len(self.spec.classes) > 1:
            raise ConfigError(
                f"{self.place}: masks is {self.config['masks']!r} for {len(self.spec.classes)} "
                "classes; put {class} into the path"
            )
        self.raters = self._checked_raters(self.config.get("raters"))

    def _read(self, image: ImageFile) -> Found:
        files = {
            name: [p for rater in self.raters if (p := self._path(name, rater, image)).is_file()]
            for name in self.spec.classes
        }
        readers = {name: len(self.raters) if self.only else len(p) for name, p in files.items()}
        readers = {name: count for name, count in readers.items() if count}
        if not readers:
            return Found()
        masks = {name: self._mask(files[name], count, image) for name, count in readers.items()}
        value: dict[str, Any] = {"known": list(readers)}
        if max(readers.values()) > 1:
            value["raters"] = readers
        return Found(value, {name: data for name, data in masks.items() if data})

    def _path(self, name: str, rater: str, image: ImageFile) -> Path:
        stem = Path(image.name).stem
        values = {"class": name, "stem": stem, "split": image.split, "rater": rater}
        if not self.config.get("raters"):
            del values["rater"]
        return self.root / fill(self.config["masks"], self.place, **values)

    def _mask(self, paths: list[Path], raters: int, image: ImageFile) -> bytes:
        """A PNG of what one rater drew, or of how many drew each pixel; nothing if it is empty."""
        count = np.zeros(image.size, np.uint8)
        for path in paths:
            data = path.read_bytes()
            mask = decode_mask(data, str(path))
            _check_size(mask, path, image)
            count += mask
        if not count.any():
            return b""
        return data if raters == 1 else encode_png(count)

    def _checked_raters(self, raters: Any) -> list[str]:
        if raters is None:
            return [""]
        names = isinstance(raters, list) and all(isinstance(name, str) for name in raters)
        if not names or not 1 <= len(set(raters)) == len(raters) <= MOST_RATERS:
            raise ConfigError(
                f"{self.place}: raters is {raters!r}; expected the raters' names, each once"
            )
        if "{rater}" not in self.config["masks"]:
            raise ConfigError(
                f"{self.place}: masks is {self.config['masks']!r} for {len(raters)} raters; put "
                "{rater} into the path"
            )
        return raters


class LabelMapReader(Reader):
    """One PNG of class values, `label_map: labels/{stem}.png`; an image without one is not
    annotated, one that has it is annotated for every class.

    `values: {heart: 1, ...}` says the value of each class (default: class i has value i + 1); 0 is
    background, and so is what `ignore: [255]` lists. Any other value is an error.
    """

    options = frozenset({"label_map", "values", "ignore"})
    required = frozenset({"label_map"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        counted = {name: number + 1 for number, name in enumerate(self.spec.classes)}
        self.values = self._checked_values(self.config.get("values", counted))
        self.ignore = self._checked_ignore(self.config.get("ignore", []))

    def _read(self, image: ImageFile) -> Found:
        values = {"stem": Path(image.name).stem, "split": image.split}
        path = self.root / fill(self.config["label_map"], self.place, **values)
        if not path.is_file():
            if self.only:
                raise ConfigError(
                    f"{path}: no such label map, but `where` of {self.place} says that the image "
                    "was annotated; add an empty map, or correct `where`"
                )
            return Found()
        labels = decode_label_map(path.read_bytes(), str(path))
        _check_size(labels, path, image)
        present = set(np.unique(labels).tolist())
        if strange := sorted(present - {0, *self.values.values(), *self.ignore}):
            raise ConfigError(
                f"{path}: the label map holds the value {strange[0]}; expected 0 or "
                f"{self.values}. Name its class in `values`, or list it in `ignore`"
            )
        masks = {
            name: encode_png(labels == value)
            for name, value in self.values.items()
            if value in present
        }
        return Found({"known": list(self.spec.classes)}, masks)

    def _checked_values(self, values: Any) -> dict[str, int]:
        if (
            not isinstance(values, Mapping)
            or set(values) != set(self.spec.classes)
            or not all(map(_is_value, values.values()))
            or len(set(values.values())) != len(values)
        ):
            raise ConfigError(
                f"{self.place}: values is {values}; expected a number of its own, 1 to 65535, for "
                f"each of the classes {list(self.spec.classes)}"
            )
        return {name: values[name] for name in self.spec.classes}

    def _checked_ignore(self, ignore: Any) -> list[int]:
        if not isinstance(ignore, list) or not all(map(_is_value, ignore)):
            raise ConfigError(f"{self.place}: ignore is {ignore!r}; expected a list of numbers")
        if both := sorted(set(ignore) & set(self.values.values())):
            raise ConfigError(f"{self.place}: {both[0]} is both in `values` and in `ignore`")
        return ignore


def _check_size(mask: np.ndarray, path: Path, image: ImageFile) -> None:
    if mask.shape != image.size:
        raise ConfigError(
            f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its image {image.name} is "
            f"{image.size[1]}x{image.size[0]} (width x height); they must be equal"
        )


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**16
