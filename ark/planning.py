"""From what a recipe says of its phases to the plan of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ark.cycle import Cycle, Phase
from ark.types import KINDS, ConfigError, TaskSpec

ALL = "all"


@dataclass(frozen=True)
class Mix:
    """Tasks in turns of a few steps, each as often as its share says; spread evenly, not drawn.

    A task's share is proportional to n ** (1 / temperature) of its n training samples.

    Args:
        steps: of a cycle; None: one pass over all samples together.
        every: steps of a turn.
        temperature: 1: in proportion to the sizes; larger: more alike; inf: all the same.
        weights: by task key, in place of the share that the size gives.
        lock, train: as in `Phase`, for every turn.
    """

    steps: int | None = None
    every: int = 1
    temperature: float = 1.0
    weights: dict[str, float] = field(default_factory=dict)
    lock: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)


@dataclass
class CycleConfig:
    """What a recipe says of its phases: exactly one of phases, each and mix.

    Args:
        cycles: how often the list of phases runs.
        phases: every phase, written out.
        each: phases that every task runs, task after task in the order of the datasets.
        mix: tasks in turns of a few steps, by the datasets' sizes.
    """

    cycles: int = 1
    phases: list[Phase] = field(default_factory=list)
    each: list[Phase] = field(default_factory=list)
    mix: Mix | None = None


def make_cycle(
    config: CycleConfig, tasks: Sequence[TaskSpec], samples: Mapping[str, int], batch_size: int
) -> Cycle:
    """Turns a recipe's phases into a Cycle.

    Args:
        tasks: all tasks of the run.
        samples: training samples of each task, by key.
        batch_size: samples of one task in one optimiser step, over all ranks and accumulated
            batches.

    Raises:
        ConfigError: a phase names no task of the run, says its length not exactly once, or begins
            after the last cycle; a task never trains.
    """
    known = [task.key for task in tasks]
    phases = _expand(config, tasks, samples, batch_size)
    for number, phase in enumerate(phases):
        _check(phase, f"cycle phase {number}", known)
        if phase.first_cycle > max(config.cycles, 1):
            raise ConfigError(
                f"cycle phase {number} ({phase.name}): first_cycle={phase.first_cycle}, but there "
                f"are cycles={config.cycles}; no cycle has this phase: drop it, or mend one of both"
            )
    lengths = [_steps(phase, samples, batch_size) for phase in phases]
    trained = {task for phase in phases for task in phase.members}
    if unused := [key for key in known if key not in trained]:
        if config.mix:
            raise ConfigError(
                f"cycle.mix: {unused} have no turn in the {sum(lengths)} steps of a cycle; raise "
                "`steps` or `temperature`, lower `every`, or give them `weights`"
            )
        raise ConfigError(f"cycle: no phase trains {unused}; add a phase or remove the task")
    return Cycle(phases, lengths, config.cycles)


def _steps(phase: Phase, samples: Mapping[str, int], batch_size: int) -> int:
    if phase.passes is None:
        return phase.steps or 0
    largest = max(samples[task] for task in phase.members)
    return max(1, round(phase.passes * largest / batch_size))


def keep_tasks(config: CycleConfig, keys: Sequence[str]) -> CycleConfig:
    """The phases of `keys` only; of those of several tasks what is left."""
    phases = [
        replace(p, tasks=[t for t in p.tasks if t in keys]) if p.tasks not in ([], [ALL]) else p
        for p in config.phases
        if p.tasks == [ALL] or any(task in keys for task in p.members)
    ]
    mix = config.mix
    if mix:
        mix = replace(mix, weights={k: w for k, w in mix.weights.items() if k in keys})
    return replace(config, phases=phases, mix=mix)


def alone(cycle: Cycle, task: str) -> CycleConfig:
    """What `task` does in `cycle`, without the steps of the others: the same phases, as long and
    with the same locks, in the cycles in which it has any.

    Turns of a mix stay turns: what counts phases (`teacher_update`, `validate`) finds as many.

    Raises:
        ConfigError: it never trains.
    """
    found = zip(cycle.phases, cycle.lengths, strict=True)
    mine = [(phase, length) for phase, length in found if task in phase.members]
    there = [n for n in range(cycle.cycles) if any(phase.runs_in(n) for phase, _ in mine)]
    if not there:
        raise ConfigError(f"cycle: no phase trains {task}; add a phase or remove the task")
    phases = [
        Phase(
            task,
            list(phase.lock),
            steps=length,
            train=list(phase.train),
            first_cycle=min(runs) + 1,
            last_cycle=None if phase.last_cycle is None else max(runs) + 1,
        )
        for phase, length in mine
        if (runs := [new for new, old in enumerate(there) if phase.runs_in(old)])
    ]
    first = phases[0]
    if len(phases) > 1 and all(p == first and not p.when for p in phases):
        steps = sum(p.steps or 0 for p in phases)
        turns = Mix(steps, first.steps or 0, lock=first.lock, train=first.train)
        return CycleConfig(len(there), mix=turns)
    return CycleConfig(len(there), phases)


def _expand(
    config: CycleConfig, tasks: Sequence[TaskSpec], samples: Mapping[str, int], batch_size: int
) -> list[Phase]:
    if sum(map(bool, (config.phases, config.each, config.mix))) != 1:
        raise ConfigError(
            "cycle: give exactly one of `phases`, `each` and `mix`, and at least one phase"
        )
    if config.mix:
        return _turns(config.mix, {t.key: samples[t.key] for t in tasks}, batch_size)
    for phase in config.each:
        if phase.task or phase.tasks:
            raise ConfigError(f"cycle.each: task {phase.name!r}; `each` is for every task, drop it")
        if unknown := set(phase.kinds) - set(KINDS):
            raise ConfigError(f"cycle.each: kinds {sorted(unknown)}; expected some of {KINDS}")
    for phase in config.phases:
        if phase.kinds:
            raise ConfigError(f"cycle.phases: kinds {phase.kinds} is for `each`; drop it here")
    keys = [task.key for task in tasks]
    return [
        replace(phase, tasks=keys) if phase.tasks == [ALL] else phase for phase in config.phases
    ] or [
        replace(phase, task=task.key)
        for task in tasks
        for phase in config.each
        if not phase.kinds or task.kind in phase.kinds
    ]


def _turns(mix: Mix, samples: Mapping[str, int], batch_size: int) -> list[Phase]:
    if unknown := sorted(set(mix.weights) - set(samples)):
        raise ConfigError(f"cycle.mix: weights of {unknown}; the run's tasks are {list(samples)}")
    steps = math.ceil(sum(samples.values()) / batch_size) if mix.steps is None else mix.steps
    if mix.every < 1 or mix.temperature <= 0 or steps < mix.every:
        raise ConfigError(
            f"cycle.mix: steps={steps}, every={mix.every}, temperature={mix.temperature}; expected "
            "every >= 1, steps >= every and temperature > 0"
        )
    weights = {k: mix.weights.get(k, n ** (1 / mix.temperature)) for k, n in samples.items()}
    if not all(0 < weight < math.inf for weight in weights.values()):
        raise ConfigError(f"cycle.mix: weights {weights}; expected finite numbers above 0")
    return [
        Phase(task, lock=mix.lock, train=mix.train, steps=mix.every)
        for task in _spread(weights, steps // mix.every)
    ]


def _spread(weights: Mapping[str, float], turns: int) -> list[str]:
    """Whose turn it is. After every turn each of k tasks has had its share but for at most
    1 - 1 / (2k - 2) turns, and no rule keeps closer (Tijdeman 1980, "The chairman assignment
    problem", Discrete Mathematics 32)."""
    total = sum(weights.values())
    shares = {key: weight / total for key, weight in weights.items()}
    slack = 1 / max(2 * len(shares) - 2, 2)
    had, order = dict.fromkeys(shares, 0), []
    for turn in range(1, turns + 1):
        # those for whom it is not too early; rounding must not leave none
        ready = [key for key in shares if turn * shares[key] - had[key] >= slack - 1e-9]
        # who would soonest be too far behind
        task = min(ready, key=lambda key: (had[key] + 1 - slack) / shares[key])
        had[task] += 1
        order.append(task)
    return order


def _check(phase: Phase, where: str, known: Sequence[str]) -> None:
    if phase.task and phase.tasks:
        raise ConfigError(f"{where}: task {phase.task!r} and tasks {phase.tasks}; give one of both")
    for task in phase.members:
        if task not in known:
            raise ConfigError(
                f"{where}: task {task!r} is not one of this run's tasks {known}; "
                "write <dataset>/<task>, and list the dataset's YAML under `datasets`"
            )
    if len(set(phase.members)) < len(phase.members):
        raise ConfigError(f"{where}: tasks {phase.tasks}; expected each once")
    for key in ("lock", "train"):
        if getattr(phase, key) is None:  # a list item of a recipe that null was to take away
            raise ConfigError(f"{where}: {key} is null; expected module names, [] for none")
    if phase.lock and phase.train:
        raise ConfigError(
            f"{where} ({phase.name}): lock {phase.lock} and train {phase.train}; `train` locks all "
            "the rest, so give one of both"
        )
    if phase.first_cycle < 1 or (phase.last_cycle or phase.first_cycle) < phase.first_cycle:
        raise ConfigError(
            f"{where} ({phase.name}): first_cycle={phase.first_cycle}, "
            f"last_cycle={phase.last_cycle}; expected 1 <= first_cycle <= last_cycle"
        )
    length = phase.steps if phase.passes is None else phase.passes
    if (phase.steps is None) == (phase.passes is None) or length is None or length <= 0:
        raise ConfigError(
            f"{where} ({phase.name}): steps={phase.steps}, passes={phase.passes}; "
            "expected exactly one of them, above 0"
        )
