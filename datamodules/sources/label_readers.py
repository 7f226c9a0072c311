"""Readers of image-level labels in the forms that public releases give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.sources.reader import Found, ImageFile, Reader
from datamodules.sources.readers import MultilabelReader
from datamodules.sources.records import Records
from datamodules.sources.regions import RegionReader
from datamodules.sources.table import Table

_VOTES = ("majority", "any", "all")


def multilabel_reader(
    name: str, config: Mapping[str, Any], root: Path, table: Table | None
) -> Reader:
    """The reader that the entry asks for: by `column`, `vote` or `region`, or a column a class."""
    kinds: dict[str, Callable[..., Reader]] = {
        "column": NamesReader,
        "vote": VoteReader,
        "region": RegionLabelReader,
    }
    given = [option for option in kinds if option in config]
    if len(given) > 1:
        raise ConfigError(f"source annotation {name!r}: has {given}; expected one of them at most")
    kind = kinds[given[0]] if given else MultilabelReader
    return kind(name, config, root, table)


class NamesReader(Reader):
    """One column with the names of what the image shows, `separator` between them; the other
    classes are absent. `values: {text: [classes]}` says what a text that is no class means, as
    `No Finding: []`. Blank: the image is not annotated."""

    options = frozenset({"column", "separator", "values"})
    required = frozenset({"column"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.column = str(self.config["column"])
        self.table.require(self.column, f"column of {self.place}")
        values = self.config.get("values") or {}
        self.values = {str(text): [] if v is None else list(v) for text, v in values.items()}
        for name in (name for names in self.values.values() for name in names):
            self.spec.index(name, f"{self.place}: values")

    def _read(self, image: ImageFile) -> Found:
        text = self.table.value(image.name, self.column)
        if not text:
            return Found()
        separator = self.config.get("separator")
        labels = dict.fromkeys(self.spec.classes, 0)
        for part in text.split(separator) if separator else [text]:
            for name in self.values.get(part.strip(), [part.strip()]):
                self.spec.index(name, f"{self.table.path}: column {self.column!r} of {image.name}")
                labels[name] = 1
        return Found(labels)


class VoteReader(Reader):
    """One column a class, 0 or 1, and one row a reader: a class is there where `vote: majority`
    (more than half), `any` or `all` of the readers say so."""

    options = required = frozenset({"vote"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.vote = self.config["vote"]
        if self.vote not in _VOTES:
            raise ConfigError(
                f"{self.place}: vote is {self.vote!r}; expected one of {list(_VOTES)}"
            )
        if not isinstance(self.table, Records):
            raise ConfigError(f"{self.place}: `vote` reads the tables of a ReleaseSource")
        self.records = self.table
        for name in self.spec.classes:
            self.records.require(name, f"classes of {self.place}")

    def _read(self, image: ImageFile) -> Found:
        return Found({name: self._label(image.name, name) for name in self.spec.classes})

    def _label(self, image: str, name: str) -> int:
        texts = self.records.texts(image, name)
        if wrong := [text for text in texts if text not in ("0", "1", "0.0", "1.0")]:
            raise ConfigError(
                f"{self.records.path}: column {name!r} of {image} is {wrong[0]!r}; expected 0 or 1 "
                "of each reader"
            )
        share = sum(text.startswith("1") for text in texts) / len(texts)
        return int({"majority": share > 0.5, "any": share > 0, "all": share == 1}[self.vote])


class RegionLabelReader(RegionReader):
    """What the regions of the same release show: a class is there where a row has a region."""

    def _described(self, image: ImageFile) -> Found:
        shown = {name for name, _ in self.regions(image)}
        return Found({name: int(name in shown) for name in self.spec.classes})
