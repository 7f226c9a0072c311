from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ark import alone, report
from ark.cycle import Cycle, Phase
from ark.locks import check_phase
from ark.network import Network
from ark.planning import CycleConfig, make_cycle
from ark.run import RunConfig
from ark.types import ConfigError, TaskSpec
from toys import SIZE, make_task

BACKBONE = {"name": "test_efficientnet", "image_size": SIZE}
TASKS = [make_task("multilabel"), make_task("multiclass")]
KEYS = [task.key for task in TASKS]
JOINT = Cycle([Phase(KEYS[0], steps=3), Phase(tasks=KEYS, steps=4)], [3, 4], 2)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch) -> list[tuple[str, int, int]]:
    """(task, phases of its plan, max_steps) of every run that is started."""
    calls: list[tuple[str, int, int]] = []

    def train(child: str, key: str, plan: Path, max_steps: int) -> None:
        calls.append((key, len(yaml.safe_load(plan.read_text())["cycle"]["phases"]), max_steps))
        results = {who: {key: {"auroc": 0.5}} for who in ("student", "teacher")}
        report.write_json(tmp_path / child / report.RESULTS, results)

    monkeypatch.setattr(alone, "_train", train)
    return calls


@pytest.mark.parametrize("name", ["run", "group/run"])
def test_each_task_is_trained_once_a_recipe_below_the_run(name: str, tmp_path, trained) -> None:
    run = RunConfig(name=name, root=str(tmp_path))
    network = Network(BACKBONE, None, TASKS)
    for recipe in ("a", "a", "b"):
        alone.train_each(run, network, JOINT, recipe)
    assert trained == [(KEYS[0], 2, -1), (KEYS[1], 1, -1)] * 2
    joined = report.read_json(tmp_path / name / "alone" / report.RESULTS)
    assert set(joined["alone teacher"]) == set(KEYS)


def test_a_task_whose_plan_has_changed_is_trained_again(tmp_path, trained) -> None:
    """As it does where the recipe counts passes and the data has grown."""
    run = RunConfig(root=str(tmp_path))
    longer = Cycle(JOINT.phases, [5, 4], 2)
    for cycle in (JOINT, longer):
        alone.train_each(run, Network(BACKBONE, None, TASKS), cycle, "recipe")
    assert [key for key, *_ in trained] == [*KEYS, KEYS[0]]


def test_a_run_that_failed_is_not_taken_for_the_one_before(tmp_path, trained, monkeypatch) -> None:
    run, network = RunConfig(root=str(tmp_path)), Network(BACKBONE, None, TASKS)
    alone.train_each(run, network, JOINT, "a")
    finish = alone._train

    def fail(*args: object) -> None:
        raise ConfigError("failed")

    monkeypatch.setattr(alone, "_train", fail)
    with pytest.raises(ConfigError, match="failed"):
        alone.train_each(run, network, JOINT, "b")
    monkeypatch.setattr(alone, "_train", finish)
    alone.train_each(run, network, JOINT, "a")
    assert [key for key, *_ in trained] == [*KEYS, KEYS[0]]


def test_where_the_joint_run_stops_early_so_does_each_task(tmp_path, trained) -> None:
    run, network = RunConfig(root=str(tmp_path)), Network(BACKBONE, None, TASKS)
    alone.train_each(run, network, JOINT, "recipe", max_steps=9)  # 3 a, 4 both, 2 a
    assert trained == [(KEYS[0], 2, 9), (KEYS[1], 1, 4)]
    with pytest.raises(ConfigError, match=r"max_steps=3, before toy/multiclass trains"):
        alone.train_each(run, network, JOINT, "recipe", max_steps=3)


def masks(dataset: str) -> TaskSpec:
    task = make_task("segmentation", dataset)
    return replace(task, head={**task.head, "init_args": {"shared": "masks"}})


def test_locks_of_what_other_tasks_use_are_left_out() -> None:
    """Every phase must be one that the network of the task alone can run."""
    tasks = [make_task("multilabel"), masks("one"), masks("two")]
    keys = [task.key for task in tasks]
    network = Network(BACKBONE, None, tasks)
    config = CycleConfig(
        phases=[
            Phase(tasks=keys, lock=["shared.masks", "heads.one/segmentation"], steps=2),
            Phase(tasks=keys[:2], train=["shared.masks", "head"], steps=3),
            Phase(keys[0], lock=["backbone", "shared"], steps=4),
            Phase(keys[2], lock=["backbone.model", "head", "heads.toy/multilabel"], steps=5),
        ]
    )
    joint = make_cycle(config, tasks, dict.fromkeys(keys, 1), 1)
    expected = {
        keys[0]: [([], []), ([], ["head"]), (["backbone"], [])],
        keys[1]: [(["shared.masks", "heads.one/segmentation"], []), ([], ["shared.masks", "head"])],
        keys[2]: [(["shared.masks"], []), (["backbone.model", "head"], [])],
    }
    for phase in joint.phases:
        check_phase(network, phase)
    for task in tasks:
        plan = alone.own_plan(joint, task.key, network)
        assert [(p.lock, p.train) for p in plan.phases] == expected[task.key]
        single = Network(BACKBONE, None, [task])
        for phase in plan.phases:
            check_phase(single, phase)
