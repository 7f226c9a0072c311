"""The columns of one split's part of the index, filled while its tars are written."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datamodules.annotations import AnnotationSpec, tally
from datamodules.images import image_format
from datamodules.index import IMAGE, JSON, mask_member
from datamodules.sources.base import SourceSample


class SampleTable:
    """Keys, member offsets, annotated samples and class counts of one split."""

    def __init__(self, specs: dict[str, AnnotationSpec]) -> None:
        self.specs = specs
        self.keys: list[str] = []
        self.shards: list[int] = []
        self.members: dict[str, list[list[int]]] = {IMAGE: [[], []], JSON: [[], []]}
        for annotation, spec in specs.items():
            if spec.kind == "segmentation":
                for name in spec.classes:
                    self.members[mask_member(annotation, name)] = [[], []]
        self.annotated: dict[str, list[int]] = {annotation: [] for annotation in specs}
        self.counts = {a: {c: _zeros(spec) for c in spec.classes} for a, spec in specs.items()}

    def add(self, sample: SourceSample, shard: int, places: dict[str, tuple[int, int]]) -> None:
        """Adds a sample of tar number `shard`; `places`: member name -> (offset, size)."""
        number = len(self.keys)
        self.keys.append(sample.key)
        self.shards.append(shard)
        for member, (offsets, sizes) in self.members.items():
            ending = image_format(sample.image, sample.key) if member == IMAGE else member
            offset, size = places.get(f"{sample.key}.{ending}", (-1, -1))
            offsets.append(offset)
            sizes.append(size)
        for annotation, value in sample.annotations.items():
            self.annotated[annotation].append(number)
            self._count(annotation, value, sample)

    def columns(self) -> dict[str, Any]:
        return {
            "key": self.keys,
            "shard": self.shards,
            "members": self.members,
            "annotated": self.annotated,
        }

    def _count(self, annotation: str, value: Any, sample: SourceSample) -> None:
        spec, counts = self.specs[annotation], self.counts[annotation]
        seen = tally(spec, value, sample.masks.get(annotation, {}))
        present = Counter(seen.present)
        for name in {*seen.known, *present}:
            spec.index(name, f"sample {sample.key!r}, annotation {annotation!r}")
        for name in seen.known:
            counts[name]["known"] += 1
        for name, times in present.items():
            counts[name]["present"] += 1
            if spec.kind == "detection":
                counts[name]["boxes"] += times


def _zeros(spec: AnnotationSpec) -> dict[str, int]:
    return {"known": 0, "present": 0, **({"boxes": 0} if spec.kind == "detection" else {})}
