"""What samples say about their classes, counted: for _info.json and for who looks at a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datamodules.annotations import AnnotationSpec, tally
from datamodules.tars.stored import Stored

# annotation -> class -> "known", "present", in detection "boxes"; "uncertain" where there are some
Counts = dict[str, dict[str, dict[str, int]]]


def zero_counts(stored: Mapping[str, Stored]) -> Counts:
    return {
        name: {
            c: {"known": 0, "present": 0, **({"boxes": 0} if one.spec.kind == "detection" else {})}
            for c in one.spec.classes
        }
        for name, one in stored.items()
    }


def add_counts(total: Counts, more: Counts) -> None:
    for annotation, classes in more.items():
        for name, counts in classes.items():
            mine = total[annotation][name]
            for what, number in counts.items():
                mine[what] = mine.get(what, 0) + number


class Range(NamedTuple):
    """Numbers of which only this much is kept."""

    low: float
    high: float
    total: float
    number: int

    def join(self, other: Range) -> Range:
        return Range(
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
            self.number + other.number,
        )


Ranges = dict[tuple[str, str], Range]  # (annotation, class) of kind values


def add_ranges(total: Ranges, more: Ranges) -> None:
    for name, one in more.items():
        total[name] = total[name].join(one) if name in total else one


@dataclass(frozen=True)
class Seen:
    """What one sample says in one annotation."""

    times: Counter[str]  # class that somebody looked for -> how often the image shows it
    uncertain: frozenset[str] = frozenset()
    numbers: Mapping[str, float] = field(default_factory=dict)  # of kind values

    @classmethod
    def of(cls, spec: AnnotationSpec, value: Any, masks: list[str], where: str) -> Seen:
        """
        Args:
            value: as `Stored.value` gives it.
            masks: classes whose mask is not empty.

        Raises:
            ConfigError: a class that is none of the spec's.
        """
        found = tally(spec, value, masks)
        times = Counter({spec.classes[spec.index(name, where)]: 0 for name in found.known})
        for name in found.present:
            times[spec.classes[spec.index(name, where)]] += 1
        numbers = value if spec.kind == "values" else {}
        return cls(times, frozenset(found.uncertain), numbers)

    def add_to(self, counts: dict[str, dict[str, int]]) -> None:
        """Adds one sample to its annotation's `counts`, by class."""
        for name, times in self.times.items():
            mine = counts[name]
            mine["known"] += 1
            mine["present"] += bool(times)
            if "boxes" in mine:
                mine["boxes"] += times
            if name in self.uncertain:
                mine["uncertain"] = mine.get("uncertain", 0) + 1
