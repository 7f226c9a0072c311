"""Scores by class, and the forgetting matrix, as tables that a dashboard can sort and filter."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ark import forgetting, report
from ark.module import ArkModule
from ark.scores import WHO, prefix
from ark.tracking.sinks import log_numbers, log_picture, log_table, takes_pictures

CLASS_COLUMNS = ("task", "class", "metric", *WHO)


class ClassTables(Callback):
    """Logs `classes/val` at each validation of the training and `classes/test` at the end: a row
    for each class and metric, a column for student and teacher."""

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, module, "val")

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._log(trainer, module, "test")

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        assert isinstance(module, ArkModule)
        if set(module.scored) == set(WHO):  # the score before training is the student's alone
            rows = class_rows(trainer.callback_metrics, split, module)
            log_table(trainer.loggers, f"classes/{split}", CLASS_COLUMNS, rows, trainer.global_step)


def class_rows(metrics: Mapping[str, Any], split: str, module: ArkModule) -> list[list[Any]]:
    """Of metrics named `<prefix>/<dataset>/<task>/<metric>/<class>`; None: not measurable."""
    found = {who: report.collect(metrics, prefix(split, who), module.keys) for who in WHO}
    rows = []
    for task in module.keys:
        for name in found[WHO[0]][task]:
            metric, _, of = name.partition("/")
            if of:
                values = [_number(found[who][task].get(name)) for who in WHO]
                rows.append([task, of, metric, *values])
    return rows


class ForgettingTable(Callback):
    """Logs what `ark.forgetting.Forgetting` wrote: after each of its rows the means of its
    measures, `forgetting/<who>/<measure>`; where a cycle ends the matrix and its heat map too.

    Must come behind Forgetting in the list of callbacks.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / forgetting.MATRIX

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ArkModule)
        step, cycle = trainer.global_step, module.cycle
        if not (trainer.is_global_zero and trainer.loggers and self.path.is_file()):
            return
        found = {who: forgetting.Matrix.read(self.path, who, cycle, module.keys) for who in WHO}
        means = {
            f"forgetting/{who}/{measure}": values["mean"]
            for who, matrix in found.items()
            for measure, values in matrix.numbers().items()
        }
        measured = {name: value for name, value in means.items() if not math.isnan(value)}
        log_numbers(trainer.loggers, measured, step)
        if step and cycle.at(step - 1).ends("cycle"):
            self._log_matrix(trainer, module, found)

    def _log_matrix(
        self, trainer: pl.Trainer, module: ArkModule, found: Mapping[str, forgetting.Matrix]
    ) -> None:
        rows = [
            [who, steps, *map(_number, scores)]
            for who, matrix in found.items()
            for steps, scores in zip(matrix.steps, matrix.scores.tolist(), strict=True)
        ]
        step = trainer.global_step
        log_table(trainer.loggers, "forgetting/matrix", ["who", "step", *module.keys], rows, step)
        if takes_pictures(trainer.loggers):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / forgetting.PICTURE
                forgetting.draw(found, module.cycle, path)
                log_picture(trainer.loggers, "forgetting/heat_map", path, step)


def _number(value: Any) -> float | None:
    """A table has no NaN: what could not be measured is empty."""
    return None if value is None or math.isnan(value) else float(value)
