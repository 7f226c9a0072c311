"""Labels and probabilities as a small chart under the image. Shape letters: see `ark.types`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ark.drawing import colour, show_image
from ark.types import ClassPrediction, MulticlassTarget, MultilabelTarget

from .links import chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 4
_HEIGHT = 0.085  # of a row, as a share of the image's
_LETTERS = 19  # of a class's name; what is longer is cut
_HOLD = "\N{NO-BREAK SPACE}"  # lines of a title break between names only
_LINE = 42  # letters of a title's line
_NAME_AT, _END = -2.3, 1.5  # in lengths of a full bar, which starts at 0
_ON_PAPER = {"#FFFFFF": "#777777"}  # the palette's white is for radiographs


@dataclass(frozen=True)
class Row:
    """One class. Truth and prediction have the same marks, so that they compare at a glance."""

    index: int  # of the class
    present: bool | None  # None: unknown
    value: float | None = None  # a probability or an uncertain label
    tick: float | None = None  # the threshold

    @property
    def mark(self) -> str:
        """Full circle: present; empty circle: absent; question mark: nobody knows."""
        if self.present is None:
            return "?"
        return "\N{BLACK CIRCLE}" if self.present else "\N{WHITE CIRCLE}"

    @property
    def length(self) -> float:
        """Of the bar, 0..1."""
        return float(self.present or False) if self.value is None else self.value

    @property
    def text(self) -> str:
        """What stands behind the bar."""
        words = {True: "present", False: "absent", None: "unknown"}
        return words[self.present] if self.value is None else f"{self.value:.2f}"


def truth_rows(target: MultilabelTarget | MulticlassTarget, index: int) -> list[Row]:
    """Of multilabel all classes: the present ones first, then unknown, then absent; else one."""
    if isinstance(target, MulticlassTarget):
        return [Row(int(target.labels[index]), True)]
    rows = []
    labels, known = target.labels[index].tolist(), target.known[index].tolist()
    for k, label in enumerate(labels):
        present = label >= 0.5 if known[k] else None
        uncertain = known[k] and 0 < label < 1
        rows.append(Row(k, present, label if uncertain else None))
    return sorted(rows, key=lambda row: (True, None, False).index(row.present))


def predicted_rows(
    prediction: ClassPrediction, index: int, kind: str, thresholds: Tensor
) -> list[Row]:
    """All classes: the chosen ones first, then by falling probability; of an ordinal task the first
    ROWS of these, in the order of the classes."""
    row = prediction.probabilities[index : index + 1].float().cpu()
    present = chosen(row, kind, thresholds.cpu())[0].tolist()
    ticks = thresholds.tolist() if kind == "multilabel" else [None] * len(present)
    values = row[0].tolist()
    rows = [Row(k, present[k], value, ticks[k]) for k, value in enumerate(values)]
    rows = sorted(rows, key=lambda row: (not row.present, -row.length))
    return sorted(rows[:ROWS], key=lambda row: row.index) if kind == "ordinal" else rows


def title(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """`Edema, Nodule +2`, with probabilities where there are some; "none"; and what is unknown."""
    if all(row.present is None for row in rows):
        return "unknown"
    found = _names([row for row in rows if row.present], classes) or "none"
    missing = _names([row for row in rows if row.present is None], classes)
    lines = [found, f"(unknown: {missing})"] if missing else [found]
    return "\n".join(_wrapped(line) for line in lines)


def draw(axes: Axes, image: Tensor, rows: Sequence[Row], classes: Sequence[str]) -> None:
    """Shows (3, H, W) uint8 under a title, and below it the first ROWS rows."""
    show_image(axes, image.permute(1, 2, 0).cpu().numpy(), title(rows, classes))
    shown = rows[:ROWS]
    height = _HEIGHT * len(shown)
    chart = axes.inset_axes((0.0, -height - 0.02, 1.0, height))
    chart.set_xlim(_NAME_AT, _END)
    chart.set_ylim(len(shown) - 0.5, -0.5)
    chart.set_axis_off()
    for y, row in enumerate(shown):
        _draw_row(chart, y, row, classes[row.index])


def _draw_row(chart: Axes, y: int, row: Row, name: str) -> None:
    name = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    weight = "bold" if row.present else "normal"
    chart.text(_NAME_AT, y, row.mark, fontsize=6, va="center", weight="bold")
    chart.text(_NAME_AT + 0.2, y, name, fontsize=6, va="center", weight=weight)
    hatch = "////" if row.present is None else None
    chart.barh(y, 1.0, 0.62, color="none", ec="#888888", lw=0.5, hatch=hatch)
    if row.length:
        hue = _ON_PAPER.get(colour(row.index), colour(row.index))
        chart.barh(y, row.length, 0.62, color=hue, ec="black", lw=0.5)
    if row.tick is not None:
        chart.plot([row.tick, row.tick], [y - 0.45, y + 0.45], color="black", lw=1.2)
    chart.text(1.05, y, row.text, fontsize=6, va="center", weight=weight)


def _names(rows: Sequence[Row], classes: Sequence[str]) -> str:
    names = [
        (classes[row.index] + ("" if row.value is None else f" {row.text}")).replace(" ", _HOLD)
        for row in rows[:ROWS]
    ]
    more = f"{_HOLD}+{len(rows) - ROWS}" if len(rows) > ROWS else ""
    return ", ".join(names) + more


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _LINE, break_long_words=False).replace(_HOLD, " ")
