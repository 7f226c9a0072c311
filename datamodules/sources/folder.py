"""FolderSource: a folder of images with a CSV, COCO jsons and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.imaging.images import Window, check_window
from datamodules.sources.base import SPLITS
from datamodules.sources.files import FileSource
from datamodules.sources.reader import fill
from datamodules.sources.readers import READERS
from datamodules.sources.table import Table


class FolderSource(FileSource):
    """Images in a folder, annotated by any mix of a CSV, COCO jsons, mask folders and label maps.

    Args:
        root: the dataset's folder; all other paths are relative to it.
        splits: `{files: splits/{split}.txt}`, lists of image names; or `{column: split}`, a column
            of the table that holds train, val, test or a blank.
        annotations: name -> `{kind, classes, ...}`; see `datamodules.sources.readers`.
        images: the folder of the images.
        table: a CSV with one row an image.
        key: the table's column with the image's file name.
        patient: the table's column with the patient; no patient may be in two splits.
        window: how pixels of more than 8 bits will become 8 bits (see
            `datamodules.imaging.images`); here it only serves to prove that each image can be
            decoded.

    Raises:
        ConfigError: anything missing or contradictory, before an image is read.
    """

    def __init__(
        self,
        root: str,
        splits: dict[str, str],
        annotations: dict[str, dict[str, Any]],
        images: str = "images",
        table: str | None = None,
        key: str = "image",
        patient: str | None = None,
        window: Window = "auto",
    ) -> None:
        self.window = check_window(window, "source")
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(f"source root {root!r} is no folder; correct `root` or set ARK_DATA")
        self.folder = self.root / images
        self.table = Table(self.root / table, key) if table else None
        self.split_of = self._read_splits(splits)
        self.patient = patient
        self._check_patients()
        self._readers = self._make_readers(annotations, self.table, lambda kind, _: READERS[kind])

    def notes(self) -> list[str]:
        lines = []
        if self.table is not None and (left := [n for n in self.table if n not in self.split_of]):
            lines.append(f"{self.table.path}: {len(left)} rows are in no split, as {left[0]}")
        for reader in self._readers.values():
            lines += reader.notes(self.split_of)
        return lines

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _listed_by(self, split: str) -> str:
        return f"the {split} split"

    def _key(self, name: str) -> str:
        return re.sub(r"[^\w-]", "_", str(Path(name).with_suffix("")))

    def _patient(self, name: str) -> str | None:
        if self.patient is None or self.table is None:
            return None
        return self.table.value(name, self.patient) or None

    def _read_splits(self, splits: Mapping[str, str]) -> dict[str, str]:
        """Image name -> split, in the order of the lists or of the table."""
        if set(splits) == {"files"}:
            split_of = self._splits_of_files(splits["files"])
        elif set(splits) == {"column"}:
            split_of = self._splits_of_column(splits["column"])
        else:
            raise ConfigError(
                f"source splits has {sorted(splits)}; expected {{files: splits/{{split}}.txt}} or "
                "{column: NAME}"
            )
        if "train" not in split_of.values():
            raise ConfigError(f"source splits {dict(splits)}: the train split is empty")
        return split_of

    def _splits_of_files(self, pattern: str) -> dict[str, str]:
        split_of: dict[str, str] = {}
        paths = {s: self.root / fill(pattern, "source splits.files", split=s) for s in SPLITS}
        for split, path in paths.items():
            if not path.is_file():
                continue
            names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
            if not names:
                raise ConfigError(f"{path}: the split is empty; list images or remove the file")
            for name in names:
                if name in split_of:
                    raise ConfigError(
                        f"{path}: {name} is already in {split_of[name]}; list it once"
                    )
                if self.table is not None and name not in self.table:
                    raise ConfigError(f"{path}: {name} has no row in {self.table.path}")
                split_of[name] = split
        if not split_of:
            raise ConfigError(f"{paths['train']}: no such split; correct splits.files")
        return split_of

    def _splits_of_column(self, column: str) -> dict[str, str]:
        if self.table is None:
            raise ConfigError("source splits.column needs a CSV; name it in `table`")
        self.table.require(column, "splits.column")
        rows = {name: self.table.value(name, column) for name in self.table}
        if wrong := [name for name, split in rows.items() if split not in (*SPLITS, "")]:
            raise ConfigError(
                f"{self.table.path}: {column} of {wrong[0]} is {rows[wrong[0]]!r}; expected one of "
                f"{list(SPLITS)}, or blank to leave it out"
            )
        return {name: split for name, split in rows.items() if split}

    def _check_patients(self) -> None:
        if self.patient is None:
            return
        if self.table is None:
            raise ConfigError("source patient names a CSV column; name the file in `table`")
        self.table.require(self.patient, "patient")
        seen: dict[str, str] = {}
        for name, split in self.split_of.items():
            patient = self.table.value(name, self.patient)
            if patient and seen.setdefault(patient, split) != split:
                raise ConfigError(
                    f"{self.table.path}: patient {patient!r} is in {seen[patient]} and in {split} "
                    f"({name}); keep a patient's images in one split"
                )
