from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ark.cycle import Cycle, Phase
from ark.planning import CycleConfig, Mix, keep_tasks, make_cycle
from ark.types import ConfigError, TaskSpec

TASKS = [
    TaskSpec("a", "labels", "multilabel", ("x",)),
    TaskSpec("b", "boxes", "detection", ("x",)),
]
SAMPLES = {"a/labels": 100, "b/boxes": 30}


def members(names: str) -> list[str]:
    return list(names)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "ab", "bc"]),
            st.integers(1, 5),
            st.integers(1, 3),
            st.one_of(st.none(), st.integers(3, 5)),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_at_equals_walking_the_plan(spec: list[tuple], cycles: int) -> None:
    """Tasks alone and together, in all cycles or in some: against a walk with counters."""
    spec = [("a", 1, 1, None), *spec]  # no cycle is empty
    phases = [
        Phase(tasks=members(names), steps=n, first_cycle=first, last_cycle=last)
        for names, n, first, last in spec
    ]
    cycle = Cycle(phases, [n for _, n, _, _ in spec], cycles)
    ran = dict.fromkeys("abc", 0)
    step = phases_done = passes_done = 0
    for number in range(cycles):
        here = [p for p in phases if p.first_cycle <= number + 1 <= (p.last_cycle or 99)]
        for index, phase in enumerate(here):
            ends_pass = index + 1 == len(here) or here[index + 1].tasks != phase.tasks
            for phase_step in range(phase.steps):
                at = cycle.at(step)
                assert (at.cycle, at.index, at.phase_step) == (number, index, phase_step)
                assert at.phase is phase
                assert at.task_steps == tuple(ran[task] for task in phase.tasks)
                last = phase_step == phase.steps - 1
                assert [at.ends(u) for u in ("step", "phase", "pass", "cycle")] == [
                    True, last, last and ends_pass, last and index + 1 == len(here),
                ]  # fmt: skip
                assert [at.count(u) for u in ("step", "phase", "pass", "cycle")] == [
                    step, phases_done, passes_done, number,
                ]  # fmt: skip
                assert {task: cycle.steps_of(task, step) for task in "abc"} == ran
                for task in phase.tasks:
                    ran[task] += 1
                step += 1
            phases_done += 1
            passes_done += ends_pass
        assert cycle.end_of(number) == step
    assert [cycle.total(u) for u in ("step", "phase", "pass", "cycle")] == [
        step, phases_done, passes_done, cycles,
    ]  # fmt: skip
    assert {task: cycle.steps_of(task, step) for task in "abc"} == ran
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
        (CycleConfig(), "exactly one of `phases`, `each` and `mix`"),
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
        (CycleConfig(each=[Phase(steps=1)], mix=Mix()), "exactly one of"),
        (CycleConfig(each=[Phase(steps=1, tasks=["all"])]), "`each` is for every task"),
        (CycleConfig(phases=[Phase("a/labels", tasks=["all"], steps=1)]), "give one of both"),
        (CycleConfig(phases=[Phase(tasks=["a/labels"] * 2, steps=1)]), "each once"),
        (CycleConfig(each=[Phase(steps=1, lock=["x"], train=["y"])]), "`train` locks all the rest"),
        (CycleConfig(each=[Phase(steps=1, first_cycle=0)]), "1 <= first_cycle <= last_cycle"),
        (CycleConfig(each=[Phase(steps=1, first_cycle=3, last_cycle=2)]), "last_cycle=2"),
        (CycleConfig(cycles=2, each=[Phase(steps=1, first_cycle=2)]), "cycle 1 of 2 has no phase"),
        (CycleConfig(mix=Mix(weights={"nih/x": 1})), r"weights of \['nih/x'\]"),
        (CycleConfig(mix=Mix(weights={"a/labels": 0})), "numbers above 0"),
        (CycleConfig(mix=Mix(steps=3, every=4)), "steps >= every"),
        (CycleConfig(mix=Mix(temperature=0)), "temperature > 0"),
    ],
)
def test_errors_name_the_phase_and_the_fix(config: CycleConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_cycle(config, TASKS, SAMPLES, batch_size=8)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, float("inf")])
@pytest.mark.parametrize("every", [1, 3])
def test_a_mix_gives_each_task_its_share_at_every_moment(temperature: float, every: int) -> None:
    mix = Mix(steps=300, every=every, temperature=temperature)
    cycle = make_cycle(CycleConfig(cycles=2, mix=mix), TASKS, SAMPLES, batch_size=10)
    assert cycle.total_steps == 2 * 300 // every * every
    sizes = {key: n ** (1 / temperature) for key, n in SAMPLES.items()}
    for step in range(0, 300 // every * every, every):
        for key, size in sizes.items():
            expected = step * size / sum(sizes.values())
            assert abs(cycle.steps_of(key, step) - expected) <= every


def test_a_mix_is_one_pass_over_all_samples_and_weights_replace_sizes() -> None:
    plan = make_cycle(CycleConfig(mix=Mix(lock=["backbone"])), TASKS, SAMPLES, batch_size=10)
    assert [plan.steps_of(key, plan.total_steps) for key in SAMPLES] == [10, 3]
    assert plan.phases[0].lock == ["backbone"]
    weights = {"a/labels": 1.0, "b/boxes": 3.0}
    plan = make_cycle(CycleConfig(mix=Mix(steps=40, weights=weights)), TASKS, SAMPLES, 10)
    assert [plan.steps_of(key, 40) for key in SAMPLES] == [10, 30]


def test_a_concurrent_phase_trains_all_and_lasts_as_long_as_the_largest() -> None:
    config = CycleConfig(phases=[Phase(tasks=["all"], passes=0.5)])
    plan = make_cycle(config, TASKS, SAMPLES, batch_size=10)
    assert plan.phases[0].members == ["a/labels", "b/boxes"]
    assert plan.lengths == [5]
    assert plan.at(3).task_steps == (3, 3)
    assert "a/labels + b/boxes" in plan.describe()


def test_a_selection_of_tasks_keeps_what_is_theirs() -> None:
    config = CycleConfig(
        phases=[
            Phase("a/labels", steps=1),
            Phase("b/boxes", steps=2),
            Phase(tasks=["a/labels", "b/boxes"], steps=3),
            Phase(tasks=["all"], steps=4),
        ]
    )
    kept = keep_tasks(config, ["b/boxes"])
    assert [(p.members, p.steps) for p in kept.phases] == [
        (["b/boxes"], 2),
        (["b/boxes"], 3),
        (["all"], 4),
    ]
    assert len(config.phases) == 4
    mix = keep_tasks(CycleConfig(mix=Mix(weights={"a/labels": 1, "b/boxes": 2})), ["b/boxes"]).mix
    assert mix.weights == {"b/boxes": 2}
