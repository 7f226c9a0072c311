"""The matrix of every task's score after every phase, in the run's folder; see `ark.transfer`."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tabulate import tabulate

from ark import report
from ark.cycle import Cycle
from ark.module import ArkModule
from ark.scores import WHO, prefix
from ark.transfer import MEASURES, Scores, Trained

MATRIX, NUMBERS, PICTURE = "forgetting.csv", "forgetting.json", "forgetting.png"


@dataclass(frozen=True)
class Matrix:
    """The scores of the student or of the teacher over a run."""

    tasks: tuple[str, ...]  # T keys
    steps: tuple[int, ...]  # R: optimiser steps that were done
    scores: Scores  # (R, T)
    trained: Trained  # (R, T)

    @classmethod
    def read(cls, path: Path, who: str, cycle: Cycle, tasks: Sequence[str]) -> Matrix:
        """From the file that `Forgetting` wrote; what trained between its rows the plan says."""
        rows = [row for row in _read(path) if row["who"] == who]
        steps = [int(row["step"]) for row in rows]
        scores = [[float(row[task] or "nan") for task in tasks] for row in rows]
        ran = np.array([[cycle.steps_of(task, step) for task in tasks] for step in steps])
        trained = np.diff(ran, axis=0, prepend=np.zeros((1, len(tasks)), int)) > 0
        return cls(tuple(tasks), tuple(steps), np.array(scores), trained)

    def numbers(self) -> dict[str, dict[str, float]]:
        """Measure -> task -> value, and under "mean" the mean over the tasks that have one."""
        found = {}
        for name, measure in MEASURES.items():
            values = measure(self.scores, self.trained)
            mean = float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
            found[name] = {**dict(zip(self.tasks, values.tolist(), strict=True)), "mean": mean}
        return found


class Forgetting(Callback):
    """Writes a row for student and teacher at each validation of the training, at the validation
    before its first step where there is one, and at the end.

    The file holds what an uninterrupted run would have written: a row takes the place of those of
    its step and of later steps, which a run that goes on from an earlier checkpoint does again.

    Args:
        folder: of the run, for forgetting.csv: step, phases (that are over), cycle (from 1), task
            and lock of the last step, who, and a column a task with its main metric.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MATRIX

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ArkModule)
        step, total = trainer.global_step, module.cycle.total_steps
        # a run that max_steps cuts short is scored where an uninterrupted one is not
        planned = trainer.state.fn == "fit" or step in (0, total)
        if not planned or trainer.sanity_checking or not trainer.is_global_zero:
            return
        facts = _where(module.cycle, step)
        rows = [
            {**facts, "who": who, **_main_scores(module, trainer.callback_metrics, who)}
            for who in WHO
        ]
        kept = [row for row in _read(self.path) if int(row["step"]) < step]
        _write(self.path, [*kept, *rows])


def _where(cycle: Cycle, step: int) -> dict[str, Any]:
    if step == 0:
        return {"step": 0, "phases": 0, "cycle": 0, "task": "", "lock": ""}
    at = cycle.at(step - 1)
    state = {"task": at.phase.name, "lock": at.phase.state}
    return {"step": step, "phases": at.phases + at.ends_phase, "cycle": at.cycle + 1, **state}


def _main_scores(module: ArkModule, metrics: Mapping[str, Any], who: str) -> dict[str, Any]:
    """As in `val/score` a task that diverged counts 0."""
    found = report.collect(metrics, prefix("val", who), module.keys)
    scores = {}
    for key, head in module.network.heads_by_key().items():
        value = found[key][head.main_metric]
        diverged = math.isnan(value) and found[key].get("non_finite", 0) > 0
        scores[key] = 0.0 if diverged else "" if math.isnan(value) else value
    return scores


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All or nothing: a run that is killed here leaves the file as it was."""
    half = path.with_suffix(".half")
    with half.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(half, path)


def conclude(folder: Path, cycle: Cycle, tasks: Sequence[str]) -> list[str]:
    """Writes forgetting.json and forgetting.png; returns the report's lines, none without rows."""
    if not _read(folder / MATRIX):
        return []
    found = {who: Matrix.read(folder / MATRIX, who, cycle, tasks) for who in WHO}
    numbers = {who: matrix.numbers() for who, matrix in found.items()}
    report.write_json(folder / NUMBERS, numbers)
    draw(found, cycle, folder / PICTURE)
    rows = [
        [
            task,
            who,
            *("" if math.isnan(v := numbers[who][m][task]) else f"{v:+.3f}" for m in MEASURES),
        ]
        for task in [*tasks, "mean"]
        for who in WHO
    ]
    return [
        "",
        "## Forgetting and transfer",
        "",
        f"Main metric on the validation split, at {len(found[WHO[0]].steps)} points of the run "
        f"({MATRIX}). Backward transfer below 0, forgetting and lost between visits above 0: other "
        "tasks' training cost this task. `ark.transfer` has the formulas.",
        "",
        tabulate(rows, ["task", "who", *MEASURES], tablefmt="github", disable_numparse=True),
        "",
        f"![main metric over the run; a dot: the task was in training]({PICTURE})",
    ]


def draw(found: Mapping[str, Matrix], cycle: Cycle, path: Path) -> None:
    """A heat map for each of `found`: a row a task, a column a validation."""
    from matplotlib.figure import Figure  # matplotlib costs a second: not at every start

    first = next(iter(found.values()))
    columns, tasks = len(first.steps), len(first.tasks)
    size = (3.5 + max(0.3 * columns, 3.5), len(found) * (1.0 + 0.4 * tasks) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    low = min(0.0, *(float(np.nanmin(m.scores, initial=0.0)) for m in found.values()))
    for axes, (who, matrix) in zip(grid, found.items(), strict=True):
        # cividis looks alike with and without red-green blindness
        image = axes.imshow(
            matrix.scores.T, cmap="cividis", vmin=max(low, -1), vmax=1, aspect="auto"
        )
        axes.set_yticks(range(tasks), matrix.tasks, fontsize=8)
        shown = range(0, columns, math.ceil(columns / 30))
        axes.set_xticks(shown, [str(matrix.steps[i]) for i in shown], fontsize=7, rotation=90)
        axes.set_title(f"{who}: main metric on the validation split", fontsize=9, loc="left")
        _mark(axes, matrix, cycle)
    grid[-1].set_xlabel("optimiser steps done; lines: cycles; dots: trained since the last column")
    figure.colorbar(image, ax=list(grid), fraction=0.03, pad=0.01)
    figure.savefig(path, dpi=130)


def _mark(axes: Any, matrix: Matrix, cycle: Cycle) -> None:
    """Dots where a task trained, a line where a cycle ends, and numbers where there is room."""
    columns, rows = np.nonzero(matrix.trained)
    axes.scatter(columns, rows + 0.33, s=12, color="white", edgecolors="black", linewidths=0.5)
    ends = {cycle.end_of(number) for number in range(cycle.cycles - 1)}
    for column, step in enumerate(matrix.steps[:-1]):
        if step in ends:
            axes.axvline(column + 0.5, color="black", linewidth=1.2)
    if len(matrix.steps) > 30:
        return
    for (column, row), score in np.ndenumerate(matrix.scores):
        if not math.isnan(score):
            color = "black" if score > 0.55 else "white"
            text = f"{score:.2f}".replace("0.", ".")
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
