"""Numbers that change in training: (step, total steps) -> float, nothing else.

A schedule holds no state, so a resumed run needs none and a test needs no trainer. What counts as
a step is its owner's to say: optimiser steps, phases, passes or cycles (`ark.cycle.Unit`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ark.errors import ConfigError


def _check_share(where: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{where}: {value}; expected a share of the run in [0, 1]")


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

    def __post_init__(self) -> None:
        _check_share("WarmupCosine.warmup", self.warmup)

    def __call__(self, step: int, total: int) -> float:
        ramp = self.warmup * total
        if step < ramp:
            return (step + 1) / (ramp + 1)
        return Cosine(1.0, self.end)(int(step - ramp), max(int(total - ramp), 1))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from `start` to `end`."""

    start: float
    end: float

    def __call__(self, step: int, total: int) -> float:
        return self.start + (self.end - self.start) * step / max(total, 1)


@dataclass(frozen=True)
class CountedWarmup(Schedule):
    """Linear from `start` to 1 over the first `warmup` steps, then half a cosine to `end`.

    What the papers' rates follow, where a step is a round (Ark: 20 of them from 1e-6, spec ark.md)
    or a task done (Foundation X: 20 of 3000, spec foundation_x.md, Optimiser).

    Args:
        first: the number of the first step. With 0 it runs at `start`, with 1 one step further:
            Foundation X starts at 0, which would waste its first task.
    """

    warmup: int
    start: float = 0.0
    end: float = 0.0
    first: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ConfigError(f"CountedWarmup.warmup: {self.warmup}; expected a count of steps")

    def __call__(self, step: int, total: int) -> float:
        step = min(step + self.first, total)
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        return Cosine(1.0, self.end)(step - self.warmup, max(total - self.warmup, 1))


@dataclass(frozen=True)
class Ramp(Schedule):
    """0 for the first `delay` share of the steps, then linear over the next `warmup` share to
    what `then` says."""

    then: Schedule
    warmup: float = 0.1
    delay: float = 0.0

    def __post_init__(self) -> None:
        _check_share("Ramp.warmup", self.warmup)
        _check_share("Ramp.delay", self.delay)

    def __call__(self, step: int, total: int) -> float:
        begun = step - self.delay * total
        ramp = self.warmup * total
        share = 0.0 if begun < 0 else min(begun / ramp, 1.0) if ramp else 1.0
        return share * self.then(step, total)


@dataclass(frozen=True)
class FirstStep(Schedule):
    """`value` in the very first step, afterwards what `then` says."""

    value: float
    then: Schedule

    def __call__(self, step: int, total: int) -> float:
        return self.then(step, total) if step else self.value
