from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ark.cycle import Cycle, Phase
from ark.planning import CycleConfig, Mix, alone, keep_tasks, make_cycle
from ark.types import ConfigError, TaskSpec

TASKS = [
    TaskSpec("a", "labels", "multilabel", ("x",)),
    TaskSpec("b", "boxes", "detection", ("x",)),
]
SAMPLES = {"a/labels": 100, "b/boxes": 30}


def members(names: str) -> list[str]:
    return list(names)


@settings(deadline=None)
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
        (CycleConfig(each=[Phase(steps=1, train=None)]), "train is null; .* for none"),  # type: ignore[arg-type]
        (CycleConfig(phases=[Phase(tasks=["a/labels"] * 2, steps=1)]), "each once"),
        (CycleConfig(each=[Phase(steps=1, lock=["x"], train=["y"])]), "`train` locks all the rest"),
        (CycleConfig(each=[Phase(steps=1, first_cycle=0)]), "1 <= first_cycle <= last_cycle"),
        (CycleConfig(each=[Phase(steps=1, first_cycle=3, last_cycle=2)]), "last_cycle=2"),
        (CycleConfig(cycles=2, each=[Phase(steps=1, first_cycle=2)]), "cycle 1 of 2 has no phase"),
        (CycleConfig(mix=Mix(weights={"nih/x": 1})), r"weights of \['nih/x'\]"),
        (CycleConfig(mix=Mix(weights={"a/labels": 0})), "numbers above 0"),
        (CycleConfig(mix=Mix(steps=3, every=4)), "steps >= every"),
        (CycleConfig(mix=Mix(temperature=0)), "temperature > 0"),
        (CycleConfig(mix=Mix(steps=0)), "steps=0, every=1.*steps >= every"),
        (CycleConfig(mix=Mix(weights={"a/labels": float("nan")})), "finite numbers above 0"),
        (
            CycleConfig(mix=Mix(steps=7, every=3, weights={"a/labels": 9.0, "b/boxes": 1.0})),
            r"cycle.mix: \['b/boxes'\] have no turn in the 6 steps of a cycle; raise `steps` or "
            "`temperature`, lower `every`",
        ),
        (
            CycleConfig(cycles=3, each=[Phase(steps=1), Phase(steps=2, first_cycle=9)]),
            r"phase 1 \(a/labels\): first_cycle=9, but there are cycles=3",
        ),
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
            assert abs(cycle.steps_of(key, step) - expected) < every


@settings(deadline=None)
@given(st.lists(st.floats(0.02, 1), min_size=2, max_size=20))
def test_a_mix_keeps_every_task_within_a_turn_of_its_share(sizes: list[float]) -> None:
    keys = [f"x/t{number}" for number in range(len(sizes))]
    weights = dict(zip(keys, sizes, strict=True))
    tasks = [TaskSpec("x", key[2:], "multilabel", ("y",)) for key in keys]
    # so many that the smallest share is a turn, which it must then have had
    mix = Mix(steps=math.ceil(sum(sizes) / min(sizes)) + 1, weights=weights)
    cycle = make_cycle(CycleConfig(mix=mix), tasks, dict.fromkeys(keys, 1), batch_size=1)
    had = dict.fromkeys(keys, 0)
    for turn, phase in enumerate(cycle.phases, start=1):
        had[phase.task] += 1
        worst = max(abs(had[key] - turn * weights[key] / sum(sizes)) for key in keys)
        assert worst <= 1 - 1 / (2 * len(keys) - 2) + 1e-6  # Tijdeman's bound


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


# -- alone ----------------------------------------------------------------------------------------

SHARED = {"a": 57, "b": 8, "c": 25}
THREE = [TaskSpec("x", name, "multilabel", ("y",)) for name in SHARED]
SIZES = {f"x/{name}": n for name, n in SHARED.items()}

stretches = st.builds(
    Phase,
    tasks=st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=3, unique=True),
    lock=st.sampled_from([[], ["backbone"], ["shared.masks", "head"]]),
    steps=st.integers(1, 5),
    first_cycle=st.integers(1, 4),
    last_cycle=st.one_of(st.none(), st.integers(4, 6)),
)
plans = st.one_of(
    st.builds(
        CycleConfig,
        cycles=st.integers(4, 5),
        # no cycle is empty, and every task trains
        phases=st.lists(stretches, max_size=6).map(lambda p: [*p, Phase(tasks=["all"], passes=1)]),
    ),
    st.builds(
        CycleConfig,
        cycles=st.integers(4, 6),
        phases=st.lists(stretches, max_size=6).map(
            lambda p: [*p, Phase("x/c", steps=2), Phase("x/a", steps=1, first_cycle=3),
                       Phase("x/b", train=["head"], passes=0.5, last_cycle=2)]
        ),
    ),
    st.builds(
        CycleConfig,
        cycles=st.integers(1, 3),
        each=st.lists(
            st.builds(Phase, lock=st.sampled_from([[], ["backbone"]]), passes=st.floats(0.1, 2)),
            min_size=1,
            max_size=3,
        ),
    ),
    st.builds(
        CycleConfig,
        cycles=st.integers(1, 3),
        mix=st.builds(
            Mix,
            steps=st.integers(60, 120),
            every=st.integers(1, 3),
            temperature=st.sampled_from([1.0, 3.0]),
            train=st.sampled_from([[], ["head"]]),
        ),
    ),
)  # fmt: skip


def walk(cycle: Cycle, task: str) -> list[tuple[list[str], list[str]]]:
    """(lock, train) of each step of `task`."""
    phases = (cycle.at(step).phase for step in range(cycle.total_steps))
    return [(p.lock, p.train) for p in phases if task in p.members]


@settings(deadline=None)
@given(plans)
def test_alone_a_task_does_what_it_does_in_the_joint_plan(config: CycleConfig) -> None:
    joint = make_cycle(config, THREE, SIZES, batch_size=10)
    for spec in THREE:
        # another batch size: no length depends on the data again
        own = make_cycle(alone(joint, spec.key), [spec], SIZES, batch_size=3)
        assert own.total_steps == joint.steps_of(spec.key, joint.total_steps)
        assert walk(own, spec.key) == walk(joint, spec.key)
        # as many phases, and cycles but for those in which it has nothing to do
        joint_at = [
            p for p in map(joint.at, range(joint.total_steps)) if spec.key in p.phase.members
        ]
        assert own.total("phase") == sum(p.ends_phase for p in joint_at)
        assert own.cycles == len({p.cycle for p in joint_at})


def test_alone_the_phases_of_each_are_those_of_the_recipe() -> None:
    config = CycleConfig(2, each=[Phase(lock=["backbone"], passes=0.5), Phase(passes=1)])
    joint = make_cycle(config, TASKS, SAMPLES, batch_size=10)
    found = alone(joint, "b/boxes")
    assert found == CycleConfig(
        2, phases=[Phase("b/boxes", ["backbone"], steps=2), Phase("b/boxes", steps=3)]
    )
    again = make_cycle(config, TASKS[1:], SAMPLES, batch_size=10)
    assert make_cycle(found, TASKS[1:], SAMPLES, 10).lengths == again.lengths


def test_alone_the_turns_of_a_mix_are_a_mix() -> None:
    """One line however many turns; and what counts phases finds as many as in the joint run."""
    mix = Mix(steps=101, every=2, temperature=2, weights={"b/boxes": 1.0}, lock=["projector"])
    joint = make_cycle(CycleConfig(3, mix=mix), TASKS, SAMPLES, batch_size=10)
    steps = joint.steps_of("a/labels", joint.total_steps) // 3
    found = alone(joint, "a/labels")
    assert found == CycleConfig(3, mix=Mix(steps, 2, lock=["projector"]))
    assert make_cycle(found, TASKS[:1], SAMPLES, 10).lengths == [2] * (steps // 2)


def test_alone_cycles_without_the_task_are_left_out() -> None:
    phases = [
        Phase("a/labels", steps=2),
        Phase("b/boxes", steps=3, first_cycle=2, last_cycle=2),
        Phase("b/boxes", steps=4, lock=["head"], first_cycle=4),
    ]
    joint = make_cycle(CycleConfig(5, phases=phases), TASKS, SAMPLES, batch_size=10)
    assert alone(joint, "b/boxes") == CycleConfig(
        3,
        phases=[
            Phase("b/boxes", steps=3, last_cycle=1),
            Phase("b/boxes", ["head"], steps=4, first_cycle=2),
        ],
    )
    with pytest.raises(ConfigError, match="no phase trains c/x"):
        alone(joint, "c/x")
