"""Metrics of student and teacher on every task, over one evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ark.network import Network
from ark.types import Prediction, Target

WHO = ("student", "teacher")


def prefix(split: str, who: str) -> str:
    """What names of metrics begin with: `val` of the student, `val_teacher` of the teacher."""
    return split if who == "student" else f"{split}_{who}"


class Scores:
    """One metric of each task's head for each of `who`."""

    def __init__(self, network: Network, who: Sequence[str], device: torch.device) -> None:
        self.who = who
        self.heads = network.heads_by_key()
        self._metrics = {
            (name, key): head.metrics().to(device)
            for name in who
            for key, head in self.heads.items()
        }

    def update(self, who: str, task: str, prediction: Prediction, target: Target) -> None:
        self._metrics[who, task].update(prediction, target)

    def compute(self, split: str) -> dict[str, float]:
        """`<prefix>/<dataset>/<task>/<metric>`, and `<prefix>/score`: the mean over the tasks of
        their main metrics, without those that could not be measured (NaN)."""
        found: dict[str, float] = {}
        for who in self.who:
            main = []
            for key, head in self.heads.items():
                values = {n: float(v) for n, v in self._metrics[who, key].compute().items()}
                main.append(values[head.main_metric])
                found |= {f"{prefix(split, who)}/{key}/{n}": v for n, v in values.items()}
            measured = [value for value in main if not np.isnan(value)]
            found[f"{prefix(split, who)}/score"] = float(np.mean(measured)) if measured else 0.0
        return found
