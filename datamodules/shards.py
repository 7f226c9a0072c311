"""Reading one sample of a dataset's shards, in any order.

A dataset's folder has plain WebDataset tars and ONE index.json. A sample's tar members:

    <key>.jpg or .png                 the image, as its source had it
    <key>.json                        height, width, patient and the annotations in class NAMES
    <key>.<annotation>.<class>.png    a mask, where the class is known and not empty

The index knows the offset of every member, so one sample costs one `pread` a member. The tars alone
say all that the index says: any WebDataset reader can use them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import Annotation, to_arrays
from datamodules.images import decode_image, decode_mask
from datamodules.index import IMAGE, JSON, REWRITE, ShardIndex, SplitIndex, mask_member


@dataclass(frozen=True)
class Sample:
    """One stored sample with one of its annotations, in pixels of the stored image."""

    key: str
    image: np.ndarray  # (H, W, 3) uint8 RGB
    annotation: Annotation


class ShardReader:
    """Random access to the samples of a `ShardIndex`. Can be pickled into worker processes."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._descriptors: dict[str, int] = {}

    def read(self, split: str, number: int, annotation: str) -> Sample:
        """Reads and decodes sample `number` of `split` with its `annotation`.

        Only the image, the json and this annotation's masks are read. Nothing is unpickled.

        Raises:
            ConfigError: the sample lacks the annotation, or a tar is damaged.
        """
        spec, part = self.index.annotation(annotation), self.index.split(split)
        key = str(part.keys[number])
        place = f"{self.index.name}/{split}: sample {key}"
        value = self.record(split, number)["annotations"].get(annotation)
        if value is None:
            raise ConfigError(f"{place} has no annotation {annotation!r}")
        image = self.image(split, number)
        stored = {}
        if spec.kind == "segmentation":
            stored = {c: mask_member(annotation, c) for c in spec.classes}
        masks = {
            name: decode_mask(self._member(part, number, member, place), f"{place}: {member}")
            for name, member in stored.items()
            if member in part.members and part.members[member][1, number] >= 0
        }
        height, width = image.shape[:2]
        return Sample(key, image, to_arrays(spec, value, masks, (height, width), place))

    def image(self, split: str, number: int) -> np.ndarray:
        """The stored image alone, (H, W, 3) uint8 RGB."""
        part = self.index.split(split)
        place = f"{self.index.name}/{split}: sample {part.keys[number]}"
        return decode_image(self._member(part, number, IMAGE, place), place)

    def record(self, split: str, number: int) -> dict[str, Any]:
        """The sample's json: height, width, patient, annotations in class names."""
        part = self.index.split(split)
        return json.loads(self._member(part, number, JSON, f"{self.index.name}/{split}"))

    def _member(self, part: SplitIndex, number: int, member: str, place: str) -> bytes:
        file = part.shards[part.shard[number]].file
        offset, size = (int(value) for value in part.members[member][:, number])
        data = os.pread(self._descriptor(file), size, offset)
        if len(data) != size:
            raise ConfigError(f"{place}: {self.index.folder / file} ends early; {REWRITE}")
        return data

    def _descriptor(self, file: str) -> int:
        # a fork may share these: pread moves no file position
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self.index.folder / file, os.O_RDONLY)
        return self._descriptors[file]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_descriptors": {}}
