"""Readers of numbers in a dataset's CSV: values, and the coordinates of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ark.types import ConfigError
from datamodules.arrays import check_value, point_inside
from datamodules.sources.reader import Found, ImageFile, Reader


class _NumberReader(Reader):
    """Columns by class; `columns` says which where they are not named as the classes are."""

    options = frozenset({"columns"})
    form: ClassVar[str]  # of `columns`

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        stated = self.config.get("columns", {})
        if not isinstance(stated, Mapping) or (set(stated) - set(self.spec.classes)):
            raise ConfigError(
                f"{self.place}: columns is {stated!r}; expected {self.form} for some of the "
                f"classes {list(self.spec.classes)}"
            )
        self.columns = {n: self._columns(n, stated.get(n)) for n in self.spec.classes}
        for column in (column for columns in self.columns.values() for column in columns):
            self.table.require(column, f"columns of {self.place}")

    def _columns(self, name: str, stated: Any) -> tuple[str, ...]:
        """The columns of class `name`; `stated` is None where the YAML does not say."""
        raise NotImplementedError

    def _numbers(self, image: ImageFile, name: str) -> list[float] | None:
        """What the columns of `name` hold; None where all are blank."""
        texts = [self.table.value(image.name, column) for column in self.columns[name]]
        if not any(texts):
            return None
        places = (
            f"{self.table.path}: column {column!r} of {image.name}" for column in self.columns[name]
        )
        return [_number(text, place) for text, place in zip(texts, places, strict=True)]


class ValuesReader(_NumberReader):
    """One column a value, `columns: {ctr: CTR}` where it is not named as the value is; blank:
    unknown. All blank: the image is not annotated."""

    form = "{name: column}"

    def _columns(self, name: str, stated: Any) -> tuple[str, ...]:
        return (str(name if stated is None else stated),)

    def _read(self, image: ImageFile) -> Found:
        found = {name: self._numbers(image, name) for name in self.spec.classes}
        return Found({name: numbers[0] for name, numbers in found.items() if numbers} or None)


class PointsReader(_NumberReader):
    """Two columns a point, in pixels of the image's file: `<name>_x` and `<name>_y`, or
    `columns: {apex: [X, Y]}`; both blank: unknown. All blank: the image is not annotated."""

    form = "{name: [column of x, column of y]}"

    def _columns(self, name: str, stated: Any) -> tuple[str, ...]:
        if stated is None:
            return f"{name}_x", f"{name}_y"
        if not isinstance(stated, list) or len(stated) != 2:
            raise ConfigError(f"{self.place}: columns of {name!r} is {stated!r}; expected [x, y]")
        return tuple(map(str, stated))

    def _read(self, image: ImageFile) -> Found:
        points = {}
        for name in self.spec.classes:
            if (numbers := self._numbers(image, name)) is not None:
                place = f"{self.table.path}: {image.name}, {name!r}"
                points[name] = point_inside(numbers, image.size, place)
        return Found(points or None)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        blank = "a number, as its other column has one" if not text else "a number, or blank"
        raise ConfigError(f"{where} is {text!r}; expected {blank}") from None
    return check_value(number, where)
