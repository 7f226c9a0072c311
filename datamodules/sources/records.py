"""Records: the rows of a release by the image that they are about, any number of them an image."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ark.types import ConfigError
from datamodules.sources.release_tables import read_table
from datamodules.sources.table import Table


class Records(Table):
    """Tables joined to one, whose rows say which images there are and what they show.

    Args:
        root: the dataset's folder.
        tables: as `read_table` reads them. Each after the first is joined to the ones before by
            `by: [column, ...]` or `by: {their column: its column}`; a row without a partner is
            left out, and counted in `notes`.
        image: the path of a row's image, such as "files/p{subject_id}/{dicom_id}.jpg"; every
            column may be named, and formatted as `str.format` does.

    Raises:
        ConfigError: anything missing, or tables that share no row.
    """

    def __init__(self, root: Path, tables: Sequence[Mapping[str, Any]], image: str) -> None:
        if not tables:
            raise ConfigError("source tables is empty; name the release's CSV, json or list")
        if "by" in tables[0]:
            raise ConfigError(f"source table {_name(tables[0])}: `by`, and none before to join to")
        self.notes: list[str] = []
        self.path = root / " + ".join(_name(config) for config in tables)
        frame = pd.DataFrame()
        for number, config in enumerate(tables):
            table = read_table(root, config, f"source table {_name(config)}")
            frame = table if number == 0 else self._joined(frame, table, config)
        self.columns = list(frame.columns)
        self._values = {column: frame[column].tolist() for column in self.columns}
        self._rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(self._images(image, len(frame))):
            self._rows_of.setdefault(name, []).append(row)

    def __contains__(self, image: str) -> bool:
        return image in self._rows_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows_of)

    def __len__(self) -> int:
        return len(self._rows_of)

    def value(self, image: str, column: str) -> str:
        """The text in `column` of all of `image`'s rows; ConfigError where they differ."""
        texts = dict.fromkeys(self.texts(image, column))
        if len(texts) > 1:
            raise ConfigError(
                f"{self.path}: the rows of {image} differ in {column!r}: {list(texts)[:4]}; of "
                "several readers' labels say which count, by `vote`"
            )
        return next(iter(texts))

    def texts(self, image: str, column: str) -> list[str]:
        """The text in `column` of each of `image`'s rows."""
        return [str(self._values[column][row]).strip() for row in self._rows_of[image]]

    def rows(self, image: str) -> list[dict[str, Any]]:
        """The rows of `image`; values are text, or lists where the release has lists."""
        return [
            {column: values[row] for column, values in self._values.items()}
            for row in self._rows_of[image]
        ]

    def _joined(
        self, left: pd.DataFrame, right: pd.DataFrame, config: Mapping[str, Any]
    ) -> pd.DataFrame:
        name = _name(config)
        by = config.get("by")
        pairs = dict(by) if isinstance(by, Mapping) else {column: column for column in by or []}
        if not pairs:
            raise ConfigError(f"source table {name}: no `by`; name the columns to join it by")
        for frame, columns in ((left, pairs), (right, pairs.values())):
            if missing := [column for column in columns if column not in frame]:
                raise ConfigError(
                    f"source table {name}: by names {missing[0]!r}, which is no column of "
                    f"{list(frame.columns)}"
                )
        right = right.drop(columns="file").rename(columns={v: k for k, v in pairs.items()})
        keys = list(pairs)
        if both := sorted((set(left.columns) & set(right.columns)) - set(keys)):
            raise ConfigError(
                f"source table {name}: {both[0]!r} is a column of another table too; join by it, "
                "or `rename` it"
            )
        right = _distinct(right)
        if left.duplicated(keys).any() and right.duplicated(keys).any():
            raise ConfigError(
                f"source table {name}: several rows share their {keys}, here and in another table; "
                "name a table with one row each first"
            )
        joined = left.merge(right, how="inner", on=keys)
        if joined.empty:
            raise ConfigError(
                f"source table {name}: no row has the {keys} of another table's; correct `by`"
            )
        for frame, other, whose in ((left, right, "other tables"), (right, left, name)):
            kept = pd.MultiIndex.from_frame(frame[keys]).isin(pd.MultiIndex.from_frame(other[keys]))
            if left_out := int((~kept).sum()):
                first = frame[keys][~kept].iloc[0].tolist()
                self.notes.append(
                    f"{self.path}: {left_out} rows of {whose} have no partner by {keys}, as {first}"
                )
        return joined

    def _images(self, template: str, count: int) -> Iterator[str]:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        except ValueError as error:
            raise ConfigError(f"source image is {template!r}: {error}") from error
        for field in fields:
            self.require(field, "image")
        for row in range(count):
            values = {field: str(self._values[field][row]) for field in fields}
            try:
                yield template.format(**values)
            except ValueError as error:
                raise ConfigError(
                    f"source image is {template!r}: {error}; values are text"
                ) from None


def _distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, each once; as they are where they hold lists."""
    lists = frame.map(lambda value: isinstance(value, list | dict)).to_numpy().any()
    return frame if lists else frame.drop_duplicates()


def _name(config: Mapping[str, Any]) -> str:
    files = config.get("files") or config.get("find") or "?"
    return files if isinstance(files, str) else " + ".join(map(str, files))
