"""ReleaseSource: a public dataset in the files and folders that its release has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, check_name
from datamodules.imaging.images import Window, check_window, decode_image, image_size
from datamodules.sources.base import SPLITS, Source, SourceSample
from datamodules.sources.drawn_splits import split_images
from datamodules.sources.label_readers import multilabel_reader
from datamodules.sources.metaimage import from_metaimage
from datamodules.sources.reader import ImageFile, Reader
from datamodules.sources.readers import READERS
from datamodules.sources.records import Records
from datamodules.sources.regions import RegionBoxReader, RegionMaskReader

_ENDING = re.compile(r"\.(png|jpe?g|webp|tiff?|dcm|dicom|mha)$", re.IGNORECASE)


class ReleaseSource(Source):
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

    location = ("root",)

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
        self._readers = {name: self._reader(name, a) for name, a in annotations.items()}
        if not self._readers:
            raise ConfigError(f"source of {root!r}: `annotations` is empty; name at least one")

    def annotations(self) -> dict[str, AnnotationSpec]:
        return {name: reader.spec for name, reader in self._readers.items()}

    def splits(self) -> dict[str, int]:
        found = list(self.split_of.values())
        return {split: found.count(split) for split in SPLITS if split in found}

    def samples(self, split: str) -> Iterator[SourceSample]:
        for name, its_split in self.split_of.items():
            if its_split == split:
                yield self._sample(name, split)

    def notes(self) -> list[str]:
        lines = list(self.records.notes)
        if left := [name for name in self.records if name not in self.split_of]:
            lines.append(f"{self.records.path}: {len(left)} images are in no split, as {left[0]}")
        for reader in self._readers.values():
            lines += reader.notes(self.split_of)
        return list(dict.fromkeys(lines))

    def _sample(self, name: str, split: str) -> SourceSample:
        path = self.root / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: the image cannot be read ({error.strerror}); {self.records.path} lists it"
            ) from error
        if data.startswith((b"ObjectType", b"NDims")):
            data = from_metaimage(data, str(path))
        decode_image(data, str(path), window=self.window)
        image = ImageFile(name, split, image_size(data, str(path)))
        found = {annotation: reader.read(image) for annotation, reader in self._readers.items()}
        return SourceSample(
            key=self._key(name),
            image=data,
            size=image.size,
            annotations={a: f.value for a, f in found.items() if f.value is not None},
            masks={a: f.masks for a, f in found.items() if f.masks},
            patient=self._patient(name),
        )

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

    def _reader(self, name: str, config: Mapping[str, Any]) -> Reader:
        check_name(name, "name of a source annotation")
        kind = config.get("kind")
        if kind not in READERS:
            raise ConfigError(
                f"source annotation {name!r}: kind is {kind!r}; expected one of {sorted(READERS)}"
            )
        return self._reader_class(kind, config)(name, config, self.root, self.records)

    def _reader_class(self, kind: str, config: Mapping[str, Any]) -> Callable[..., Reader]:
        if kind == "multilabel":
            return multilabel_reader
        by_region = {"detection": RegionBoxReader, "segmentation": RegionMaskReader}
        return by_region[kind] if kind in by_region and "region" in config else READERS[kind]
