"""The plan of a run: a cycle of phases, as a pure function of the step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from ark.types import KINDS, ConfigError, TaskSpec


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one task.

    Args:
        task: TaskSpec.key, "<dataset>/<task>".
        lock: modules that do not train in this phase: paths in the network, or "head[.path]".
        passes: length as a share of one pass over the task's training samples, or
        steps: length in optimiser steps. Exactly one of the two.
        kinds: in `CycleConfig.each` only: the task kinds that this phase is for; all if empty.
    """

    task: str = ""
    lock: list[str] = field(default_factory=list)
    passes: float | None = None
    steps: int | None = None
    kinds: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """For progress bars and reports."""
        return f"lock {'+'.join(self.lock)}" if self.lock else "release"


@dataclass
class CycleConfig:
    """What a recipe says of its phases.

    Args:
        cycles: how often the list of phases runs.
        phases: every phase, written out; or
        each: phases that every task runs, task after task in the order of the datasets.
    """

    cycles: int = 1
    phases: list[Phase] = field(default_factory=list)
    each: list[Phase] = field(default_factory=list)


@dataclass(frozen=True)
class Position:
    """Where a step stands in the plan."""

    step: int
    cycle: int  # from 0
    index: int  # of the phase in the cycle
    phase: Phase
    phase_step: int  # from 0, within the phase
    phase_steps: int  # length of the phase
    task_step: int  # steps that this task ran before this one, in all its phases

    @property
    def ends_phase(self) -> bool:
        return self.phase_step == self.phase_steps - 1


class Cycle:
    """Answers for any step which phase it is in, without having run the steps before.

    Args:
        phases: the phases of one cycle.
        lengths: each phase's length in optimiser steps, at least 1.
        cycles: how often they run.
    """

    def __init__(self, phases: Sequence[Phase], lengths: Sequence[int], cycles: int) -> None:
        if not phases or cycles < 1 or min(lengths) < 1:
            raise ConfigError(
                f"cycle: {len(phases)} phases of {list(lengths)} steps, {cycles} cycles; "
                "expected at least one phase, one step a phase and one cycle"
            )
        self.phases = list(phases)
        self.lengths = list(lengths)
        self.cycles = cycles
        self._starts = [0, *accumulate(lengths)]
        self._task_starts, self._task_totals = _count_by_task(phases, lengths)

    @property
    def steps_per_cycle(self) -> int:
        return self._starts[-1]

    @property
    def total_steps(self) -> int:
        return self.steps_per_cycle * self.cycles

    def at(self, step: int) -> Position:
        """The position of optimiser step `step`, 0 <= step < total_steps. O(log phases)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the plan of {self.total_steps} steps")
        cycle, within = divmod(step, self.steps_per_cycle)
        index = bisect_right(self._starts, within) - 1
        phase, phase_step = self.phases[index], within - self._starts[index]
        before = cycle * self._task_totals[phase.task] + self._task_starts[index]
        return Position(
            step, cycle, index, phase, phase_step, self.lengths[index], before + phase_step
        )

    def steps_of(self, task: str, step: int) -> int:
        """How many of the steps before `step`, 0 <= step <= total_steps, train `task`."""
        cycles, within = divmod(step, self.steps_per_cycle)
        found = cycles * self._task_totals[task]
        for phase, start, length in zip(self.phases, self._starts, self.lengths, strict=False):
            if phase.task == task:
                found += min(max(within - start, 0), length)
        return found

    def describe(self) -> str:
        """The phases of one cycle, a line each."""
        lines = [f"plan: {self.cycles} cycles of {self.steps_per_cycle} steps"]
        for phase, length in zip(self.phases, self.lengths, strict=True):
            lines.append(f"  {length:5d} steps  {phase.task}  {phase.state}")
        return "\n".join(lines)


def _count_by_task(
    phases: Sequence[Phase], lengths: Sequence[int]
) -> tuple[list[int], dict[str, int]]:
    """For each phase, the steps of its task before it in the cycle; and each task's total."""
    totals: dict[str, int] = {}
    starts = []
    for phase, length in zip(phases, lengths, strict=True):
        starts.append(totals.get(phase.task, 0))
        totals[phase.task] = starts[-1] + length
    return starts, totals


def make_cycle(
    config: CycleConfig, tasks: Sequence[TaskSpec], samples: dict[str, int], batch_size: int
) -> Cycle:
    """Turns a recipe's phases into a Cycle.

    Args:
        tasks: all tasks of the run.
        samples: training samples of each task, by key.
        batch_size: samples of one optimiser step, over all ranks and accumulated batches.

    Raises:
        ConfigError: a phase names no task of the run, or says its length not exactly once.
    """
    phases = _expand(config, tasks)
    known = [task.key for task in tasks]
    for number, phase in enumerate(phases):
        where = f"cycle phase {number}"
        if phase.task not in known:
            raise ConfigError(
                f"{where}: task {phase.task!r} is not one of this run's tasks {known}; "
                "write <dataset>/<task>, and list the dataset's YAML under `datasets`"
            )
        _check_length(phase, where)
    lengths = [
        phase.steps or max(1, round((phase.passes or 0) * samples[phase.task] / batch_size))
        for phase in phases
    ]
    if unused := [key for key in known if key not in {phase.task for phase in phases}]:
        raise ConfigError(f"cycle: no phase trains {unused}; add a phase or remove the task")
    return Cycle(phases, lengths, config.cycles)


def _expand(config: CycleConfig, tasks: Sequence[TaskSpec]) -> list[Phase]:
    if bool(config.phases) == bool(config.each):
        raise ConfigError("cycle: give either `phases` or `each`, and at least one phase")
    for phase in config.each:
        if phase.task:
            raise ConfigError(f"cycle.each: task {phase.task!r}; `each` is for every task, drop it")
        if unknown := set(phase.kinds) - set(KINDS):
            raise ConfigError(f"cycle.each: kinds {sorted(unknown)}; expected some of {KINDS}")
    for phase in config.phases:
        if phase.kinds:
            raise ConfigError(f"cycle.phases: kinds {phase.kinds} is for `each`; drop it here")
    return list(config.phases) or [
        replace(phase, task=task.key)
        for task in tasks
        for phase in config.each
        if not phase.kinds or task.kind in phase.kinds
    ]


def _check_length(phase: Phase, where: str) -> None:
    length = phase.steps if phase.passes is None else phase.passes
    if (phase.steps is None) == (phase.passes is None) or length is None or length <= 0:
        raise ConfigError(
            f"{where} ({phase.task}): steps={phase.steps}, passes={phase.passes}; "
            "expected exactly one of them, above 0"
        )
