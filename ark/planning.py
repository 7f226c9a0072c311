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
        ConfigError: a phase names no task of the run, or says its length not exactly once.
    """
    known = [task.key for task in tasks]
    phases = _expand(config, tasks, samples, batch_size)
    for number, phase in enumerate(phases):
        _check(phase, f"cycle phase {number}", known)
    lengths = [_steps(phase, samples, batch_size) for phase in phases]
    trained = {task for phase in phases for task in phase.members}
    if unused := [key for key in known if key not in trained]:
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
    """Every turn goes to the task that is furthest behind its share (the quota method)."""
    if unknown := sorted(set(mix.weights) - set(samples)):
        raise ConfigError(f"cycle.mix: weights of {unknown}; the run's tasks are {list(samples)}")
    steps = mix.steps or math.ceil(sum(samples.values()) / batch_size)
    if mix.every < 1 or mix.temperature <= 0 or steps < mix.every:
        raise ConfigError(
            f"cycle.mix: steps={steps}, every={mix.every}, temperature={mix.temperature}; expected "
            "every >= 1, steps >= every and temperature > 0"
        )
    weights = {k: mix.weights.get(k, n ** (1 / mix.temperature)) for k, n in samples.items()}
    if min(weights.values()) <= 0:
        raise ConfigError(f"cycle.mix: weights {weights}; expected numbers above 0")
    total, turns = sum(weights.values()), dict.fromkeys(weights, 0)
    phases = []
    for turn in range(1, steps // mix.every + 1):
        # of what it should have had by now, less what it had
        task = max(turns, key=lambda key: turn * weights[key] / total - turns[key])
        turns[task] += 1
        phases.append(Phase(task, lock=mix.lock, train=mix.train, steps=mix.every))
    return phases


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
