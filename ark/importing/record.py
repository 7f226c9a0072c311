"""What an import did with every tensor of a file, so that nothing is lost in silence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

EXAMPLES = 3


@dataclass
class Record:
    """
    Attributes:
        used: name in the file -> names in Ark's network (several where heads share it in the file).
        dropped: name in the file -> why it has no place.
        missing: name in Ark's network -> what is there instead.
        notes: what a reader must know: semantics, assumptions.
    """

    used: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def use(self, source: str, target: str) -> None:
        if target not in self.used[source]:
            self.used[source].append(target)

    def drop(self, source: str, why: str) -> None:
        self.dropped[source] = why

    def forget(self, target: str) -> list[str]:
        """Takes back that tensors were used as `target`; returns their names in the file."""
        sources = [name for name, targets in self.used.items() if target in targets]
        for name in sources:
            self.used[name].remove(target)
            if not self.used[name]:
                del self.used[name]
        return sources

    def renamed(self) -> list[str]:
        """Names in the file that the network spells otherwise, apart from `backbone.model.`."""
        return [
            source
            for source, targets in self.used.items()
            if [t.removeprefix("backbone.model.") for t in targets] != [source]
        ]

    def facts(self) -> dict[str, Any]:
        """As plain data, for config.json: counts and reasons, each with some names."""
        return {
            "used": len(self.used),
            "renamed": len(self.renamed()),
            "dropped": _grouped(self.dropped),
            "missing": _grouped(self.missing),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """For people: a row a reason."""
        renamed = self.renamed()
        kept = [name for name in self.used if name not in set(renamed)]
        rows = [["used under the same name", len(kept), "", _some(kept)]]
        moved = [f"{name} -> {self.used[name][0]}" for name in renamed]
        rows.append(["used, renamed", len(renamed), "", _some(moved, 2)])
        for title, names in (("dropped", self.dropped), ("missing", self.missing)):
            rows += [
                [title, found["count"], why, ", ".join(found["such_as"])]
                for why, found in _grouped(names).items()
            ]
        shown = [row for row in rows if row[1]]
        return tabulate(shown, ["tensors", "count", "why", "such as"], maxcolwidths=[24, 6, 44, 60])


def _grouped(names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Reason -> how many and some of them."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, why in names.items():
        groups[why].append(name)
    return {why: {"count": len(g), "such_as": g[:EXAMPLES]} for why, g in groups.items()}


def _some(names: list[str], count: int = EXAMPLES) -> str:
    return ", ".join(names[:count])
