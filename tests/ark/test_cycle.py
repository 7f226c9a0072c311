from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ark.cycle import Cycle, CycleConfig, Phase, make_cycle
from ark.types import ConfigError, TaskSpec

TASKS = [
    TaskSpec("a", "labels", "multilabel", ("x",)),
    TaskSpec("b", "boxes", "detection", ("x",)),
]
SAMPLES = {"a/labels": 100, "b/boxes": 30}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_at_equals_walking_the_plan(spec: list[tuple[str, int]], cycles: int) -> None:
    phases = [Phase(task=task, steps=length) for task, length in spec]
    cycle = Cycle(phases, [length for _, length in spec], cycles)
    ran = dict.fromkeys("abc", 0)
    step = 0
    for number in range(cycles):
        for index, (task, length) in enumerate(spec):
            for phase_step in range(length):
                at = cycle.at(step)
                assert (at.cycle, at.index, at.phase_step) == (number, index, phase_step)
                assert at.phase is phases[index]
                assert at.task_step == ran[task]
                assert at.ends_phase == (phase_step == length - 1)
                ran[task] += 1
                step += 1
    assert step == cycle.total_steps
    for outside in (-1, step):
        with pytest.raises(IndexError, match="outside the plan"):
            cycle.at(outside)


def test_each_runs_its_phases_task_after_task() -> None:
    config = CycleConfig(
        cycles=2,
        each=[Phase(lock=["backbone"], passes=0.5, kinds=["detection"]), Phase(passes=1)],
    )
    cycle = make_cycle(config, TASKS, SAMPLES, batch_size=10)
    assert [(p.task, p.lock) for p in cycle.phases] == [
        ("a/labels", []),
        ("b/boxes", ["backbone"]),
        ("b/boxes", []),
    ]
    assert cycle.lengths == [10, 2, 3]
    assert cycle.total_steps == 30


def test_a_short_pass_is_at_least_one_step() -> None:
    config = CycleConfig(phases=[Phase("a/labels", passes=0.01), Phase("b/boxes", steps=7)])
    assert make_cycle(config, TASKS, SAMPLES, batch_size=64).lengths == [1, 7]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CycleConfig(), "either `phases` or `each`"),
        (CycleConfig(phases=[Phase(steps=1)]), "phase 0: task '' is not one of this run's tasks"),
        (CycleConfig(phases=[Phase("nih/x", steps=1)]), r"'nih/x' is not one of.*'b/boxes'"),
        (CycleConfig(phases=[Phase("a/labels")]), "exactly one of them"),
        (CycleConfig(phases=[Phase("a/labels", steps=1, passes=1)]), "exactly one of them"),
        (CycleConfig(phases=[Phase("a/labels", passes=-1)]), "above 0"),
        (CycleConfig(phases=[Phase("a/labels", steps=3)]), r"no phase trains \['b/boxes'\]"),
        (CycleConfig(each=[Phase(steps=1, kinds=["detecton"])]), r"kinds \['detecton'\]"),
        (CycleConfig(each=[Phase("a/labels", steps=1)]), "`each` is for every task"),
        (CycleConfig(phases=[Phase("a/labels", steps=1, kinds=["detection"])]), "is for `each`"),
        (CycleConfig(cycles=0, each=[Phase(steps=1)]), "one cycle"),
    ],
)
def test_errors_name_the_phase_and_the_fix(config: CycleConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_cycle(config, TASKS, SAMPLES, batch_size=8)
