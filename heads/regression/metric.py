"""How far predicted numbers are from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ark.types import ValuesPrediction, ValuesTarget

from ..weighted import WeightedMetric


class ValuesMetric(WeightedMetric):
    """Over the images where a number is known; each is also given as `<metric>/<name>`.

    r2: the share of the truth's variance that is explained, 1 - sum of squares of the errors /
        that of the truth about its mean; NaN for fewer than two different truths.
    mae, rmse: mean absolute and root mean squared error, in the dataset's units.
    pearson: the correlation of prediction and truth.
    """

    predicted: list[Tensor]
    truth: list[Tensor]

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        for state in ("predicted", "truth"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def see(self, prediction: ValuesPrediction, target: ValuesTarget) -> int:
        unknown = torch.where(target.known, target.values, torch.nan)
        self.predicted.append(prediction.values.detach().float().flatten())
        self.truth.append(unknown.float().flatten())
        return len(target.values)

    def evidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true values, each (N, K) float64, NaN in the truth where unknown."""
        shape = (-1, len(self.classes))
        predicted, truth = self.gathered("predicted"), self.gathered("truth")
        return predicted.reshape(shape).astype(float), truth.reshape(shape).astype(float)

    def score(
        self, evidence: tuple[np.ndarray, np.ndarray], weights: np.ndarray, brief: bool = False
    ) -> dict[str, float]:
        columns = [_scores(p, t, weights) for p, t in zip(*(e.T for e in evidence), strict=True)]
        found = {name: _mean([column[name] for column in columns]) for name in columns[0]}
        if not brief:
            found |= {
                f"{name}/{label}": column[name]
                for name in columns[0]
                for label, column in zip(self.classes, columns, strict=True)
            }
        return found


def _scores(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    known = ~np.isnan(truth) & (weights > 0)
    predicted, truth, weights = predicted[known], truth[known], weights[known]
    if not len(truth):
        return dict.fromkeys(("r2", "mae", "rmse", "pearson"), float("nan"))
    share = weights / weights.sum()
    error, mine, theirs = predicted - truth, predicted - share @ predicted, truth - share @ truth
    squared, spread, variance = share @ error**2, share @ mine**2, share @ theirs**2
    return {
        "r2": float(1 - squared / variance) if variance > 0 else float("nan"),
        "mae": float(share @ np.abs(error)),
        "rmse": float(np.sqrt(squared)),
        "pearson": float(share @ (mine * theirs) / np.sqrt(spread * variance))
        if spread * variance > 0
        else float("nan"),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
