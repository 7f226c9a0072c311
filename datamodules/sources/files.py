"""What sources of image files have in common: a split of each, and readers of its annotations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, check_name
from datamodules.imaging.images import Window, decode_image, image_size
from datamodules.sources.base import SPLITS, Source, SourceSample
from datamodules.sources.reader import ImageFile, Reader
from datamodules.sources.readers import READERS


class FileSource(Source):
    """Images that are files below a folder. A subclass sets these and says where each file is.

    Attributes:
        split_of: image -> split, in the order in which samples come.
        window: how pixels of more than 8 bits will become 8 bits; here it only serves to prove
            that each image can be decoded.
    """

    location = ("root",)

    root: Path
    split_of: Mapping[str, str]
    window: Window
    _readers: dict[str, Reader]

    def annotations(self) -> dict[str, AnnotationSpec]:
        return {name: reader.spec for name, reader in self._readers.items()}

    def splits(self) -> dict[str, int]:
        found = list(self.split_of.values())
        return {split: found.count(split) for split in SPLITS if split in found}

    def samples(self, split: str) -> Iterator[SourceSample]:
        for name, its_split in self.split_of.items():
            if its_split == split:
                yield self._sample(name, split)

    @abstractmethod
    def _path(self, name: str) -> Path:
        """The image's file."""

    @abstractmethod
    def _listed_by(self, split: str) -> str:
        """What names an image of `split`, for messages."""

    @abstractmethod
    def _key(self, name: str) -> str: ...

    @abstractmethod
    def _patient(self, name: str) -> str | None: ...

    def _bytes(self, data: bytes, path: Path) -> bytes:
        """A file's content in one of the formats that shards store."""
        return data

    def _sample(self, name: str, split: str) -> SourceSample:
        path = self._path(name)
        try:
            data = self._bytes(path.read_bytes(), path)
        except OSError as error:
            raise ConfigError(
                f"{path}: the image cannot be read ({error.strerror}); {self._listed_by(split)} "
                "lists it"
            ) from error
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

    def _make_readers(
        self,
        annotations: Mapping[str, Mapping[str, Any]],
        table: Any,
        class_of: Callable[[str, Mapping[str, Any]], Callable[..., Reader]],
    ) -> dict[str, Reader]:
        """A reader of each annotation.

        Args:
            table: what readers look an image up in.
            class_of: (kind, configuration) -> the reader's class.
        """
        if not annotations:
            raise ConfigError(
                f"source of {str(self.root)!r}: `annotations` is empty; name at least one"
            )
        made = {}
        for name, config in annotations.items():
            check_name(name, "name of a source annotation")
            kind = config.get("kind")
            if kind not in READERS:
                raise ConfigError(
                    f"source annotation {name!r}: kind is {kind!r}; expected one of "
                    f"{sorted(READERS)}"
                )
            made[name] = class_of(kind, config)(name, config, self.root, table)
        return made
