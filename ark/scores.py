"""Metrics of student and teacher on every task, over one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ark.network import Network
from ark.types import Batch, ConfigError, Prediction

WHO = ("student", "teacher")
Intervals = dict[str, dict[str, tuple[float, float]]]  # task key -> metric -> (low, high)


def prefix(split: str, who: str) -> str:
    """What names of metrics begin with: `val` of the student, `val_teacher` of the teacher."""
    return split if who == "student" else f"{split}_{who}"


def check_metrics(network: Network) -> None:
    """Raises:
    ConfigError: a task's main metric is none of its head's.
    """
    for key, head in network.heads_by_key().items():
        if network.tasks[key].metric is None:
            continue
        known = list(head.metrics().compute())
        if head.main_metric not in known:
            raise ConfigError(f"task {key}: metric {head.main_metric!r}; expected one of {known}")


class Scores:
    """One metric of each task's head for each of `who`.

    Args:
        networks: by the name of whom they are.
    """

    def __init__(
        self, networks: dict[str, Network], who: Sequence[str], device: torch.device
    ) -> None:
        self.heads = {name: networks[name].heads_by_key() for name in who}
        self._metrics: dict[tuple[str, str], Any] = {
            (name, key): head.metrics().to(device)
            for name, heads in self.heads.items()
            for key, head in heads.items()
        }

    def update(self, who: str, batch: Batch, prediction: Prediction) -> None:
        self._metrics[who, batch.task].update(prediction, batch.target, batch.patients)

    def compute(self, split: str) -> dict[str, float]:
        """`<prefix>/<dataset>/<task>/<metric>`, and `<prefix>/score`: the mean over the tasks of
        their main metrics, without those that could not be measured (NaN); one that is NaN because
        predictions are counts 0. R2, which has no least value, counts no less than -1."""
        found: dict[str, float] = {}
        for who, heads in self.heads.items():
            main = []
            for key, head in heads.items():
                values = {n: float(v) for n, v in self._metrics[who, key].compute().items()}
                diverged = np.isnan(values[head.main_metric]) and values.get("non_finite", 0)
                main.append(0.0 if diverged else values[head.main_metric])
                found |= {f"{prefix(split, who)}/{key}/{n}": v for n, v in values.items()}
            measured = [value for value in main if not np.isnan(value)]
            found[f"{prefix(split, who)}/score"] = (
                float(np.clip(measured, -1, 1).mean()) if measured else 0.0
            )
        return found

    def intervals(self, draws: int) -> dict[str, Intervals]:
        """95 % bootstrap intervals by patient, by who, of every metric that can give them."""
        return {
            who: {
                key: self._metrics[who, key].intervals(draws)
                for key in heads
                if hasattr(self._metrics[who, key], "intervals")
            }
            for who, heads in self.heads.items()
        }

    def calibrate(self) -> None:
        """Lets each head choose its thresholds and temperature on what was seen."""
        for who, heads in self.heads.items():
            for key, head in heads.items():
                head.calibrate(self._metrics[who, key])
