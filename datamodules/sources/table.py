"""The CSV of a dataset: one row an image, every value text, nothing guessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ark.types import ConfigError


class Table:
    """Rows of a CSV by the image that they are about.

    Values stay text: a patient "007" is not the number 7, and a blank is "" and not NaN.

    Raises:
        ConfigError: no such file, no such column, or two rows for one image.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such table; correct `table` in the source") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a CSV with a header ({error})") from error
        self.columns = [str(column) for column in frame.columns]
        self.require(key, "key")
        twice = frame[key][frame[key].duplicated()]
        if len(twice):
            raise ConfigError(f"{path}: image {twice.iloc[0]!r} has two rows; keep one")
        self._rows = dict(zip(frame[key], frame.to_dict("records"), strict=True))

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def require(self, column: str, option: str) -> None:
        """Raises ConfigError where `column`, which the user's `option` names, does not exist."""
        if column not in self.columns:
            raise ConfigError(
                f"{self.path}: no column {column!r} (named by {option}); it has {self.columns}"
            )

    def value(self, image: str, column: str) -> str:
        """The text in `column` of `image`'s row; "" where blank."""
        return str(self._rows[image][column]).strip()
