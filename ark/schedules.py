"""Numbers that change in training: (step, total steps) -> float, nothing else.

A schedule holds no state, so a resumed run needs none and a test needs no trainer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """`schedule(step, total)` for step in [0, total]."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """`value` at every step."""

    value: float

    def __call__(self, step: int, total: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `start` to `end`.

    With end = 1 this is Ark's momentum, m = 1 - (1 - m0) (1 + cos(pi k / K)) / 2 (spec ark.md).
    """

    start: float
    end: float

    def __call__(self, step: int, total: int) -> float:
        remaining = 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
        return self.end + (self.start - self.end) * remaining


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from 0 over the first `warmup` share of the steps, then half a cosine to `end`.

    Of learning rates this is a factor: 1 is the rate in the optimiser's configuration.
    """

    warmup: float = 0.05
    end: float = 0.0

    def __call__(self, step: int, total: int) -> float:
        ramp = self.warmup * total
        if step < ramp:
            return (step + 1) / (ramp + 1)
        return Cosine(1.0, self.end)(int(step - ramp), max(int(total - ramp), 1))
