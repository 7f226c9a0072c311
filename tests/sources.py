"""A source for tests: samples given as they are."""

from __future__ import annotations

from collections.abc import Iterator

from datamodules.annotations import AnnotationSpec
from datamodules.sources import Source, SourceSample


class ListSource(Source):
    """Samples given as a list per split."""

    def __init__(self, specs: dict[str, AnnotationSpec], **splits: list[SourceSample]) -> None:
        self.specs, self.lists = specs, splits

    def annotations(self) -> dict[str, AnnotationSpec]:
        return self.specs

    def splits(self) -> dict[str, int]:
        return {split: len(samples) for split, samples in self.lists.items()}

    def samples(self, split: str) -> Iterator[SourceSample]:
        return iter(self.lists[split])
