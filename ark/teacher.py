"""Teacher: an exponential moving average of the student that cannot be trained by accident; and its
schedules."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ark.cycle import Cycle, Position, Unit
from ark.distributed import ranks
from ark.network import Network
from ark.schedules import Schedule
from ark.types import ConfigError


class Teacher(nn.Module):
    """A copy of the whole student, heads included: always in eval mode, never with gradients."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode whatever is asked: a teacher with drop-path active is a fault."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: Network, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, buffers included.

        Integer buffers (BatchNorm's counter) are copied. One fused lerp per dtype and device. Of
        sharded tensors each rank moves its part.
        """
        mine, theirs = (
            {name: ranks.local(value) for name, value in network.state_dict().items()}
            for network in (self.network, student)
        )
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [mine[name] for name in floats], [theirs[name] for name in floats], 1.0 - momentum
        )
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])


class Teaching:
    """When the teacher moves and how far, and how much its opinion weighs.

    Both schedules count the teacher's updates, so that one of Ark's is constant within a pass
    (spec ark.md, EMA and w).

    Args:
        clock: what an update ends.
        momentum: of the moving average.
        consistency: weight of the consistency loss.
        length_aware: see `by_length`.

    Raises:
        ConfigError: a schedule leaves [0, 1], or `length_aware` has nothing to act on.
    """

    def __init__(
        self,
        cycle: Cycle,
        clock: Unit,
        momentum: Schedule,
        consistency: Schedule,
        length_aware: bool = False,
    ) -> None:
        self._cycle, self._clock, self._total = cycle, clock, cycle.total(clock)
        self._momentum, self._consistency = momentum, consistency
        self._length_aware = length_aware
        self._check("momentum", momentum)
        self._check("consistency", consistency)
        if length_aware and clock == "step":
            raise ConfigError(
                "model.momentum_by_length: every step is as long as any other; set "
                "model.teacher_update to phase, pass or cycle, or drop it"
            )

    def _check(self, name: str, schedule: Schedule) -> None:
        for update in range(0, self._total, max(1, self._total // 100)):
            if not 0 <= (value := schedule(update, self._total)) <= 1:
                raise ConfigError(
                    f"model.{name}: {schedule} is {value:.4g} at {self._clock} {update} of "
                    f"{self._total}; expected numbers in [0, 1]"
                )

    def weight_at(self, at: Position) -> float:
        """Of the consistency loss in this step; the task's loss weighs the rest."""
        return self._consistency(at.count(self._clock), self._total)

    def moves(self, finished: Position) -> bool:
        """Whether the teacher is updated after this step."""
        return finished.ends(self._clock)

    def momentum_at(self, finished: Position) -> float:
        """Of the teacher's update after this step, or of the next one where it has none."""
        momentum = self._momentum(finished.count(self._clock), self._total)
        if self._length_aware:
            steps = steps_averaged(self._cycle, finished, self._clock)
            momentum = by_length(momentum, steps, self._cycle.total_steps / self._total)
        return momentum


def by_length(momentum: float, steps: int, mean_steps: float) -> float:
    """momentum ** (steps / mean_steps): the momentum of an update that stands for `steps` steps,
    where one that stands for `mean_steps` has `momentum`.

    Where every update has the same momentum, a pass over 463 images moves the teacher as far as
    one over 368,879 (spec ark.md, Faults). An update forgets by the factor of its momentum; with
    this the factors of two phases multiply to that of one phase of their joint length, so that
    equal numbers of steps weigh equally however they are cut into phases. Over the phases of a run
    the momenta multiply to what they would without, as long as the schedule is constant.

    Args:
        momentum: in [0, 1].
        steps: see `steps_averaged`.
        mean_steps: of all updates of the run.
    """
    return momentum ** (steps / mean_steps)


def steps_averaged(cycle: Cycle, at: Position, unit: Unit) -> int:
    """How many steps the update at the end of `at` stands for: those since the update before.

    Args:
        at: a position that ends `unit`.
    """
    if unit == "step":
        return 1
    first = at.step - at.phase_step
    while first > 0 and not (before := cycle.at(first - 1)).ends(unit):
        first -= before.phase_steps
    return at.step + 1 - first
