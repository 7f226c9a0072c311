"""What became of every tensor, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tabulate import tabulate

State = Literal["taken", "partly taken", "new", "dropped"]
FILE = "growth.md"


@dataclass(frozen=True)
class Row:
    """A part of either network.

    Args:
        part: as logs name it: backbone, projector, shared NAME, head KEY.
        taken: tensors that came from there, whole.
        resized: tensors that came from there at another size.
        by_class: tensors of which the rows of some classes came from there.
        new: tensors that have this run's own start.
        dropped: tensors there that nothing here took, rows apart.
        note: classes, and why.
    """

    part: str
    state: State
    taken: int = 0
    resized: int = 0
    by_class: int = 0
    new: int = 0
    dropped: int = 0
    note: str = ""


TITLES = ["part", "start", "taken", "resized", "rows taken", "new", "dropped", "what and why"]


def table(rows: Sequence[Row]) -> str:
    """A row a part, tensors counted, and their sums."""
    counts = [[r.taken, r.resized, r.by_class, r.new, r.dropped] for r in rows]
    lines = [
        [row.part, row.state, *(str(n or "") for n in numbers), row.note]
        for row, numbers in zip(rows, counts, strict=True)
    ]
    lines.append(
        ["all tensors", "", *(str(sum(column) or "") for column in zip(*counts, strict=True)), ""]
    )
    return tabulate(lines, TITLES, tablefmt="github", disable_numparse=True)


def write(folder: Path, start: str, text: str) -> None:
    """Leaves the table in a run's folder, for its report, which a later session may write."""
    (folder / FILE).write_text(f"\n## Start\n\n{start}. Tensors by part:\n\n{text}\n")


def read(folder: Path) -> list[str]:
    """Its lines; none of a run that did not grow."""
    path = folder / FILE
    return path.read_text().splitlines() if path.is_file() else []
