"""ReleaseSource: a public dataset in the files and folders that its release has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.imaging.images import Window, check_window
from datamodules.sources.drawn_splits import split_images
from datamodules.sources.files import FileSource
from datamodules.sources.label_readers import multilabel_reader
from datamodules.sources.metaimage import from_metaimage
from datamodules.sources.reader import Reader
from datamodules.sources.readers import READERS
from datamodules.sources.records import Records
from datamodules.sources.regions import RegionBoxReader, RegionMaskReader

_ENDING = re.compile(r"\.(png|jpe?g|webp|tiff?|dcm|dicom|mha)$", re.IGNORECASE)


class ReleaseSource(FileSource):
    """Images and annotations that tables name: CSVs, lists, jsons and COCO jsons, joined to one.

    Args:
        root: the dataset's folder; all other paths are relative to it.
        tables: what the release's tables are and how they go together; see
            `datamodules.sources.release_tables` and `Records`.
        image: the path of an image, made of its row's columns: "files/{subject_id}/{dicom_id}.jpg".
        splits: the release's own splits and what is drawn; see `split_images`.
        annotations: name -> `{kind, classes, ...}`; those of FolderSource, and of
            `datamodules.sources.label_readers` and `regions`.
        patient: the column with the patient; no patient may be in two splits.
        key: the column with the name of a sample; else it is made of the image's path.
        window: as for FolderSource.

    Raises:
        ConfigError: anything missing or contradictory, before an image is read.
    """

    def __init__(
        self,
        root: str,
        tables: list[dict[str, Any]],
        image: str,
        splits: dict[str, Any],
        annotations: dict[str, dict[str, Any]],
        patient: str | None = None,
        key: str | None = None,
        window: Window = "auto",
    ) -> None:
        self.window = check_window(window, "source")
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(
                f"source root {root!r} is no folder; download the dataset there, or correct `root`"
                " (the dataset's YAML names the environment variable that says it)"
            )
        self.records = Records(self.root, tables, image)
        self.key, self.patient = key, patient
        if patient is not None:
            self.records.require(patient, "patient")
        self.split_of = split_images(self.records, splits, self._patients())
        self._readers = self._make_readers(annotations, self.records, _reader_class)

    def notes(self) -> list[str]:
        lines = list(self.records.notes)
        if left := [name for name in self.records if name not in self.split_of]:
            lines.append(f"{self.records.path}: {len(left)} images are in no split, as {left[0]}")
        for reader in self._readers.values():
            lines += reader.notes(self.split_of)
        return list(dict.fromkeys(lines))

    def _path(self, name: str) -> Path:
        return self.root / name

    def _listed_by(self, split: str) -> str:
        return str(self.records.path)

    def _bytes(self, data: bytes, path: Path) -> bytes:
        if data.startswith((b"ObjectType", b"NDims")):
            return from_metaimage(data, str(path))
        return data

    def _key(self, name: str) -> str:
        text = name if self.key is None else self.records.value(name, self.key)
        return re.sub(r"[^\w-]", "_", _ENDING.sub("", text))

    def _patient(self, name: str) -> str | None:
        return None if self.patient is None else self.records.value(name, self.patient) or None

    def _patients(self) -> dict[str, str]:
        """Image -> what must be in one split: its patient, else itself.

        An image of two patients would be in two splits: it is left out.
        """
        if self.patient is None:
            return {name: name for name in self.records}
        found = {name: set(self.records.texts(name, self.patient)) for name in self.records}
        if several := [name for name, patients in found.items() if len(patients) > 1]:
            self.records.notes.append(
                f"{self.records.path}: {len(several)} images belong to several patients and are "
                f"left out, as {several[0]}"
            )
        return {name: next(iter(p)) or name for name, p in found.items() if len(p) == 1}


def _reader_class(kind: str, config: Mapping[str, Any]) -> Callable[..., Reader]:
    if kind == "multilabel":
        return multilabel_reader
    by_region = {"detection": RegionBoxReader, "segmentation": RegionMaskReader}
    return by_region[kind] if kind in by_region and "region" in config else READERS[kind]
