"""The plan of a run: cycles of phases, as a pure function of the step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from ark.types import ConfigError

Unit = Literal["step", "phase", "pass", "cycle"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one task, or on several at once.

    Args:
        task: TaskSpec.key, "<dataset>/<task>"; or
        tasks: several, which all train in each step ("concurrent"): a batch of each, their losses
            added; ["all"] means every task of the run.
        lock: modules that do not train in this phase: paths in the network, or "head[.path]"; or
        train: the only modules that do.
        passes: length as a share of one pass over the task's training samples (of several tasks
            the largest's), or
        steps: length in optimiser steps. Exactly one of the two.
        kinds: in `CycleConfig.each` only: the task kinds that this phase is for; all if empty.
        first_cycle, last_cycle: the cycles that have this phase, counted from 1, both included.
    """

    task: str = ""
    lock: list[str] = field(default_factory=list)
    passes: float | None = None
    steps: int | None = None
    kinds: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    first_cycle: int = 1
    last_cycle: int | None = None

    @property
    def members(self) -> list[str]:
        """The keys of the tasks that train."""
        return self.tasks or [self.task]

    @property
    def name(self) -> str:
        """`wingspan/organs`, or of a concurrent phase all its tasks."""
        return " + ".join(self.members)

    @property
    def state(self) -> str:
        """For progress bars and reports."""
        if self.train:
            return f"train only {'+'.join(self.train)}"
        return f"lock {'+'.join(self.lock)}" if self.lock else "release"

    @property
    def when(self) -> str:
        """In which cycles, where not in all."""
        if self.last_cycle is not None:
            return f"  (cycles {self.first_cycle} to {self.last_cycle})"
        return f"  (from cycle {self.first_cycle} on)" if self.first_cycle > 1 else ""

    def runs_in(self, cycle: int) -> bool:
        """Whether `cycle`, counted from 0, has this phase."""
        return self.first_cycle <= cycle + 1 <= (self.last_cycle or cycle + 1)


@dataclass(frozen=True)
class Position:
    """Where a step stands in the plan. A pass is a run of phases of the same task in one cycle."""

    step: int
    cycle: int  # from 0
    index: int  # of the phase in the cycle
    phase: Phase
    phase_step: int  # from 0, within the phase
    phase_steps: int  # length of the phase
    task_steps: tuple[int, ...]  # steps that each of the phase's tasks ran before this one
    phases: int  # phases of the run before this one
    passes: int  # passes of the run before this one
    last_of_pass: bool  # whether the phase ends its pass
    last_of_cycle: bool  # and its cycle

    @property
    def task_step(self) -> int:
        """Steps that the task (the first of several) ran before this one, in all its phases."""
        return self.task_steps[0]

    def steps_of(self, task: str) -> int:
        """Steps that one of the phase's tasks ran before this one."""
        return self.task_steps[self.phase.members.index(task)]

    @property
    def ends_phase(self) -> bool:
        return self.phase_step == self.phase_steps - 1

    def ends(self, unit: Unit) -> bool:
        """Whether this step is the last of its phase, pass or cycle; every step ends a "step"."""
        return {
            "step": True,
            "phase": self.ends_phase,
            "pass": self.ends_phase and self.last_of_pass,
            "cycle": self.ends_phase and self.last_of_cycle,
        }[unit]

    def count(self, unit: Unit) -> int:
        """How many steps, phases, passes or cycles were begun before this one."""
        return {
            "step": self.step, "phase": self.phases, "pass": self.passes, "cycle": self.cycle
        }[unit]  # fmt: skip


class _Layout:
    """The phases of one cycle, those of other cycles left out."""

    def __init__(self, phases: Sequence[Phase], lengths: Sequence[int]) -> None:
        self.phases, self.lengths = list(phases), list(lengths)
        self.starts = [0, *accumulate(lengths)]
        changes = [i for i in range(1, len(phases)) if phases[i].members != phases[i - 1].members]
        begins = {0, *changes}
        self.passes = [
            count - 1 for count in accumulate(int(i in begins) for i in range(len(phases)))
        ]
        self.last = {*(i - 1 for i in changes), len(phases) - 1}
        # of each task the steps before each phase, and at the end all
        self.ran: dict[str, list[int]] = {}
        for task in dict.fromkeys(task for phase in phases for task in phase.members):
            mine = [n * (task in p.members) for p, n in zip(phases, lengths, strict=True)]
            self.ran[task] = [0, *accumulate(mine)]

    @property
    def steps(self) -> int:
        return self.starts[-1]

    def steps_of(self, task: str, within: int) -> int:
        """How many of the first `within` steps train `task`."""
        if task not in self.ran:
            return 0
        index = min(bisect_right(self.starts, within) - 1, len(self.phases) - 1)
        here = within - self.starts[index] if task in self.phases[index].members else 0
        return self.ran[task][index] + here


class Cycle:
    """Answers for any step which phase it is in, without having run the steps before.

    Args:
        phases: the phases of a cycle, in their order; a cycle has those that `Phase.runs_in` it.
        lengths: each phase's length in optimiser steps, at least 1.
        cycles: how often they run.

    Raises:
        ConfigError: no phase, cycle or step; or a cycle without a phase.
    """

    def __init__(self, phases: Sequence[Phase], lengths: Sequence[int], cycles: int) -> None:
        if not phases or cycles < 1 or min(lengths) < 1:
            raise ConfigError(
                f"cycle: {len(phases)} phases of {list(lengths)} steps, {cycles} cycles; "
                "expected at least one phase, one step a phase and one cycle"
            )
        self.phases, self.lengths, self.cycles = list(phases), list(lengths), cycles
        made: dict[tuple[int, ...], _Layout] = {}
        self._layouts: list[_Layout] = []  # of each cycle
        for cycle in range(cycles):
            there = tuple(i for i, phase in enumerate(phases) if phase.runs_in(cycle))
            if not there:
                raise ConfigError(
                    f"cycle: cycle {cycle + 1} of {cycles} has no phase; mend first_cycle and "
                    "last_cycle of the phases"
                )
            if there not in made:
                made[there] = _Layout([phases[i] for i in there], [lengths[i] for i in there])
            self._layouts.append(made[there])
        self._starts = [0, *accumulate(layout.steps for layout in self._layouts)]
        self._phases = [0, *accumulate(len(layout.phases) for layout in self._layouts)]
        self._passes = [0, *accumulate(layout.passes[-1] + 1 for layout in self._layouts)]
        self._ran = {
            task: [0, *accumulate(layout.steps_of(task, layout.steps) for layout in self._layouts)]
            for task in dict.fromkeys(task for phase in phases for task in phase.members)
        }

    @property
    def total_steps(self) -> int:
        return self._starts[-1]

    @property
    def steps_per_cycle(self) -> int:
        """Of the first cycle; others have more or fewer where phases come and go."""
        return self._starts[1]

    def end_of(self, cycle: int) -> int:
        """How many steps are done when `cycle`, counted from 0, is over."""
        return self._starts[cycle + 1]

    def total(self, unit: Unit) -> int:
        """How many steps, phases, passes or cycles the run has."""
        return {
            "step": self._starts, "phase": self._phases, "pass": self._passes,
            "cycle": range(self.cycles + 1),
        }[unit][-1]  # fmt: skip

    def at(self, step: int) -> Position:
        """The position of optimiser step `step`, 0 <= step < total_steps. O(log phases)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the plan of {self.total_steps} steps")
        cycle = bisect_right(self._starts, step) - 1
        layout, within = self._layouts[cycle], step - self._starts[cycle]
        index = bisect_right(layout.starts, within) - 1
        phase = layout.phases[index]
        return Position(
            step,
            cycle,
            index,
            phase,
            within - layout.starts[index],
            layout.lengths[index],
            tuple(self._ran[task][cycle] + layout.steps_of(task, within) for task in phase.members),
            self._phases[cycle] + index,
            self._passes[cycle] + layout.passes[index],
            index in layout.last,
            index == len(layout.phases) - 1,
        )

    def steps_of(self, task: str, step: int) -> int:
        """How many of the steps before `step`, 0 <= step <= total_steps, train `task`."""
        cycle = min(bisect_right(self._starts, step), self.cycles) - 1
        ran = self._ran.get(task, [0] * (self.cycles + 1))[cycle]
        return ran + self._layouts[cycle].steps_of(task, step - self._starts[cycle])

    def describe(self) -> str:
        """The phases of one cycle, a line each."""
        lines = [f"plan: {self.total_steps} steps, {self.cycles} cycles of"]
        shown = list(zip(self.phases, self.lengths, strict=True))
        for phase, length in shown[:_SHOWN]:
            lines.append(f"  {length:5d} steps  {phase.name}  {phase.state}{phase.when}")
        if len(shown) > _SHOWN:
            lines.append(f"  and {len(shown) - _SHOWN} phases more")
        return "\n".join(lines)


_SHOWN = 40  # phases that `describe` lists
