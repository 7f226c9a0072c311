"""What every reader of a folder's annotations shares: its YAML entry, checked, and its paths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec
from datamodules.sources.table import Table


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


def fill(pattern: str, where: str, **values: str) -> str:
    """Puts `values` into a path like `masks/{class}/{stem}.png`; ConfigError on another {name}."""
    try:
        return pattern.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"{where}: {pattern!r} may hold {names}; found {error}") from None
