"""Source: what a dataset looks like to the shard writer, whatever its own format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datamodules.annotations import AnnotationSpec

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceSample:
    """One image and everything known about it, ready to be stored."""

    key: str  # unique in the dataset; letters, digits, "_" and "-"
    image: bytes  # JPEG, PNG, WebP, TIFF or DICOM, stored as it is
    size: tuple[int, int]  # (H, W) in pixels
    annotations: Mapping[str, Any]  # in names: see datamodules.annotations; absent = not annotated
    masks: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    # annotation -> class -> PNG of the same size: 0 and another value, or of several raters how
    # many marked each pixel; a known class without a mask is empty
    patient: str | None = None  # no patient may be in two splits


class Source(ABC):
    """A dataset in its own format. Built from YAML as `cls(**init_args)`.

    Class attributes:
        automatic: shards are made when they are first needed, without being asked for.
        location: init_args that say where the files are and not what they hold; they may differ
            from machine to machine without making the shards out of date.
    """

    automatic: ClassVar[bool] = False
    location: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def annotations(self) -> dict[str, AnnotationSpec]:
        """What the dataset is annotated with; cheap, no image is read."""

    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Name of each split (of `SPLITS`) -> number of its samples."""

    @abstractmethod
    def samples(self, split: str) -> Iterator[SourceSample]:
        """The samples of `split`, in the same order every time.

        Raises:
            ConfigError: an image or annotation that is broken, naming the file and the fix.
        """

    def notes(self) -> list[str]:
        """What was left out and why, one line each, to be shown to the user."""
        return []
