"""Metrics whose value is a function of images and their weights, and so has honest intervals.

`compute` weighs every image 1. The bootstrap draws patients with replacement, which gives every
image the number of times that its patient was drawn (Efron and Tibshirani 1993, chapter 6); images
of one patient are not independent, so they come and go together.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Interval = tuple[float, float]
# Of a patient's name 48 bits are kept, as two whole numbers that a float32 holds exactly: what
# torchmetrics gathers from a rank that saw no image is an empty float tensor.
_BITS = 24
NON_FINITE = "non_finite"


class WeightedMetric(Metric, ABC):
    """Base of the heads' metrics.

    A subclass adds list states (`dist_reduce_fx="cat"`) of ONE-dimensional float32 tensors, which
    torchmetrics gathers from ranks that saw unlike numbers of images, fills them in `see`, brings
    them into any form in `evidence`, and scores that form in `score`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    patients: list[Tensor]
    non_finite: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("patients", [], dist_reduce_fx="cat")
        self.add_state("non_finite", torch.zeros(()), dist_reduce_fx="sum")
        self._unnamed = 0

    def update(self, prediction: Any, target: Any, patients: Sequence[str] = ()) -> None:
        """Adds B images.

        Args:
            patients: B names; without them every image is a patient of its own.
        """
        count = self.see(prediction, target)
        self.non_finite += _non_finite(prediction)
        if not patients:
            patients = [f"image {self._unnamed + n}" for n in range(count)]
            self._unnamed += count
        numbers = [number for patient in patients for number in _number(patient)]
        self.patients.append(torch.tensor(numbers, dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Every metric by name, on the CPU; NaN where nothing could be measured. "non_finite",
        the number of images whose prediction holds a NaN or an infinity, is there if it is not 0:
        the network has diverged, and metrics that are NaN are so for that."""
        evidence = self.evidence()
        weights = np.ones(len(self._patients()))
        found = {name: torch.tensor(v) for name, v in self.score(evidence, weights).items()}
        return found | ({NON_FINITE: self.non_finite.cpu()} if self.non_finite else {})

    def intervals(
        self, draws: int = 1000, seed: int = 0, level: float = 0.95
    ) -> dict[str, Interval]:
        """Percentile bootstrap over patients; only of metrics without `/` in their name.

        The same whatever the number of ranks, for patients are drawn in the order of their names'
        hashes. A metric that no draw could measure has the interval (NaN, NaN).
        """
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            evidence, patients = self.evidence(), self._patients()
        if not len(patients):
            return {}
        groups, member = np.unique(patients, return_inverse=True)
        generator = np.random.default_rng(seed)
        found: dict[str, list[float]] = {}
        for _ in range(draws):
            drawn = np.bincount(
                generator.integers(len(groups), size=len(groups)), None, len(groups)
            )
            for name, value in self.score(evidence, drawn[member].astype(float), True).items():
                found.setdefault(name, []).append(value)
        tails = [(1 - level) / 2, (1 + level) / 2]
        return {name: _quantiles(np.array(values), tails) for name, values in found.items()}

    @abstractmethod
    def see(self, prediction: Any, target: Any) -> int:
        """Appends to the states; returns B."""

    @abstractmethod
    def evidence(self) -> Any:
        """The states as what `score` reads: numpy arrays by image, in the order of `update`; also
        of no image at all. Read a state with `self.gathered(name)`."""

    @abstractmethod
    def score(self, evidence: Any, weights: np.ndarray, brief: bool = False) -> dict[str, float]:
        """Every metric, each image counted as often as its weight says.

        Args:
            weights: (N,) float, >= 0.
            brief: leave out metrics with `/` in their name (single classes), and those that take
                long: the bootstrap calls this a thousand times.
        """

    def gathered(self, state: str) -> np.ndarray:
        """A list state, on the CPU, as one flat array; after a sync that of all ranks."""
        value = getattr(self, state)
        if isinstance(value, list) and not value:
            return np.zeros(0, np.float32)
        return dim_zero_cat(value).cpu().numpy()

    def _patients(self) -> np.ndarray:
        high, low = self.gathered("patients").reshape(-1, 2).T.astype(np.int64)
        return (high << _BITS) + low


def _non_finite(prediction: Any) -> Tensor:
    """How many images' predictions are not all finite."""
    finite: list[Tensor] = []  # of each field (B,) bool
    for part in (getattr(prediction, f.name) for f in fields(prediction)):
        if isinstance(part, Tensor):
            finite.append(part.flatten(1).isfinite().all(dim=1))
        elif isinstance(part, list) and part:
            finite.append(torch.stack([one.isfinite().all() for one in part]))
    return (~torch.stack(finite).all(dim=0)).sum() if finite else torch.zeros(())


def _number(patient: str) -> tuple[int, int]:
    number = int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=6).digest(), "big")
    return number >> _BITS, number & (2**_BITS - 1)


def _quantiles(values: np.ndarray, tails: list[float]) -> Interval:
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, tails)
    return float(low), float(high)
