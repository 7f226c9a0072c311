"""How FolderSource finds each kind of annotation: one reader a kind, set up by its YAML entry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec
from datamodules.images import decode_mask
from datamodules.sources.coco import CocoFile
from datamodules.sources.table import Table

_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class ImageFile:
    """One image of the folder, as a reader needs it."""

    name: str  # as in the table, the split lists and the COCO files
    split: str
    size: tuple[int, int]  # (H, W) in pixels


@dataclass(frozen=True)
class Found:
    """An annotation of one image; value None = the image is not annotated."""

    value: Any = None
    masks: Mapping[str, bytes] = field(default_factory=dict)


class Reader(ABC):
    """Reads one annotation of a folder dataset.

    `where: {column: C, equals: V}` restricts it to the rows of the table in which C is V; all other
    images are not annotated.
    """

    options: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str, config: Mapping[str, Any], root: Path, table: Table | None):
        self.place = f"source annotation {name!r}"
        self.config, self.root, self._table = config, root, table
        allowed = {"kind", "classes", "where"} | self.options
        if unknown := sorted(set(config) - allowed):
            raise ConfigError(f"{self.place}: unknown {unknown[0]!r}; expected {sorted(allowed)}")
        if missing := sorted(({"classes"} | self.required) - set(config)):
            raise ConfigError(f"{self.place}: `{missing[0]}` is missing; add it")
        self.spec = AnnotationSpec.checked(config["kind"], config["classes"], self.place)
        self.only = self._condition(config.get("where"))

    @property
    def table(self) -> Table:
        if self._table is None:
            raise ConfigError(f"{self.place} reads a CSV; name the file in the source's `table`")
        return self._table

    def read(self, image: ImageFile) -> Found:
        """The annotation of `image`, in class names."""
        if self.only and self.table.value(image.name, self.only[0]) != self.only[1]:
            return Found()
        return self._read(image)

    def notes(self, images: Mapping[str, str]) -> list[str]:
        """What this annotation says about images that the dataset leaves out."""
        return []

    @abstractmethod
    def _read(self, image: ImageFile) -> Found: ...

    def _condition(self, where: Mapping[str, Any] | None) -> tuple[str, str] | None:
        if where is None:
            return None
        if set(where) != {"column", "equals"}:
            raise ConfigError(
                f"{self.place}: where has {sorted(where)}; expected {{column: C, equals: V}}"
            )
        self.table.require(where["column"], f"where of {self.place}")
        return where["column"], str(where["equals"])


class MultilabelReader(Reader):
    """One column a class: 1, 0, or blank for unknown. All blank: the image is not annotated."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for name in self.spec.classes:
            self.table.require(name, f"classes of {self.place}")

    def _read(self, image: ImageFile) -> Found:
        texts = {name: self.table.value(image.name, name) for name in self.spec.classes}
        labels = {name: _LABELS.get(text) for name, text in texts.items() if text}
        if wrong := [name for name, label in labels.items() if label is None]:
            raise ConfigError(
                f"{self.table.path}: column {wrong[0]!r} of {image.name} is {texts[wrong[0]]!r}; "
                "expected 1, 0, or blank for unknown"
            )
        return Found(labels or None)


class MulticlassReader(Reader):
    """One column with the name of a class; blank: the image is not annotated."""

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


class DetectionReader(Reader):
    """A COCO json, or one a split. Images that it lists without a box are annotated negatives;
    images that it does not list are not annotated."""

    options = required = frozenset({"coco"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._files: dict[Path, CocoFile] = {}

    def _read(self, image: ImageFile) -> Found:
        return Found(self._file(image.split).boxes(image.name, image.size))

    def notes(self, images: Mapping[str, str]) -> list[str]:
        lines = []
        for split in sorted(set(images.values())):
            file = self._file(split)
            mine = {name for name in images if not self._per_split or images[name] == split}
            if left := file.listed - mine:
                lines.append(f"{file.path}: {len(left)} of its images are not used, as {min(left)}")
        return lines if self._per_split else lines[:1]

    @property
    def _per_split(self) -> bool:
        return "{split}" in self.config["coco"]

    def _file(self, split: str) -> CocoFile:
        path = self.root / fill(self.config["coco"], self.place, split=split)
        if path not in self._files:
            self._files[path] = CocoFile(path, self.spec)
        return self._files[path]


class SegmentationReader(Reader):
    """One binary PNG a class, `masks: masks/{class}/{stem}.png`.

    With `where`, an image of those rows is annotated for every class, and a class without a file is
    empty. Without it, only the classes that have a file are known: no file may as well mean that
    nobody drew it.
    """

    options = required = frozenset({"masks"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if "{class}" not in self.config["masks"] and len(self.spec.classes) > 1:
            raise ConfigError(
                f"{self.place}: masks is {self.config['masks']!r} for {len(self.spec.classes)} "
                "classes; put {class} into the path"
            )

    def _read(self, image: ImageFile) -> Found:
        files = {name: self._path(name, image) for name in self.spec.classes}
        files = {name: path for name, path in files.items() if path.is_file()}
        known = list(self.spec.classes) if self.only else list(files)
        if not known:
            return Found()
        masks = {name: self._mask(path, image) for name, path in files.items()}
        return Found({"known": known}, {name: data for name, data in masks.items() if data})

    def _path(self, name: str, image: ImageFile) -> Path:
        stem = Path(image.name).stem
        values = {"class": name, "stem": stem, "split": image.split}
        return self.root / fill(self.config["masks"], self.place, **values)

    def _mask(self, path: Path, image: ImageFile) -> bytes:
        data = path.read_bytes()
        mask = decode_mask(data, str(path))
        if mask.shape != image.size:
            raise ConfigError(
                f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its image {image.name} is "
                f"{image.size[1]}x{image.size[0]} (width x height); they must be equal"
            )
        return data if mask.any() else b""


READERS: dict[str, type[Reader]] = {
    "multilabel": MultilabelReader,
    "multiclass": MulticlassReader,
    "detection": DetectionReader,
    "segmentation": SegmentationReader,
}


def fill(pattern: str, where: str, **values: str) -> str:
    """Puts `values` into a path like `masks/{class}/{stem}.png`; ConfigError on another {name}."""
    try:
        return pattern.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"{where}: {pattern!r} may hold {names}; found {error}") from None
