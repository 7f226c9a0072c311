"""Growing in a run's module: the teacher, heads that start from data, parts that nobody trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ark.callbacks import CycleRunner
from ark.checkpoint import load_network, save_networks
from ark.cycle import Cycle, Phase
from ark.growing import load_source
from ark.module import ArkModule, BackboneConfig, ProjectorConfig
from ark.network import Network
from ark.types import ConfigError, TaskSpec
from toys import HEADS, SIZE, make_batch


def spec(kind: str, classes: tuple[str, ...], **args: Any) -> TaskSpec:
    head = {"class_path": HEADS[kind], "init_args": args}
    return TaskSpec("toy", kind, kind, classes, head)  # type: ignore[arg-type]


@pytest.fixture
def old(tmp_path: Path) -> Network:
    """A run's student and teacher; what is returned is the teacher."""
    tasks = [spec("values", ("rib", "spine")), spec("multilabel", ("rib", "spine", "lung"))]
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made = Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)
        made.head("toy/values").mean.fill_(10.0 * seed)
        made.head("toy/values").spread.fill_(1.0 * seed)
        networks.append(made)
    save_networks(tmp_path / "model", student=networks[0], teacher=networks[1])
    return networks[1]


def module(*tasks: TaskSpec, train: tuple[str, ...] = (), width: int = 8) -> ArkModule:
    phases = [Phase(task=task.key, train=list(train), steps=1) for task in tasks]
    return ArkModule(
        list(tasks),
        Cycle(phases, [1] * len(phases), cycles=1),
        image_size=SIZE,
        backbone=BackboneConfig("test_efficientnet"),
        projector=ProjectorConfig(width) if width else None,
    )


def start(mine: ArkModule, asked: list[str]) -> None:
    """As a new run does before its first step."""

    def samples(key: str, count: int) -> Any:
        asked.append(key)
        yield make_batch(key.split("/")[1], 8)

    trainer = SimpleNamespace(ckpt_path=None, datamodule=SimpleNamespace(samples=samples))
    CycleRunner().on_fit_start(trainer, mine)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_student_and_teacher_both_start_there(old: Network, tmp_path: Path, which: Any) -> None:
    mine = module(*old.tasks.values())
    mine.grow_from(load_source(str(tmp_path), which), {})
    expected = load_network(tmp_path, which).state_dict()
    assert (
        expected["heads.toy/values.mean"].tolist()
        == [{"student": 10.0, "teacher": 20.0}[which]] * 2
    )
    for network in mine.networks.values():
        for name, value in network.state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_a_head_that_was_taken_whole_asks_for_no_data(old: Network, tmp_path: Path) -> None:
    mine = module(*old.tasks.values())
    mine.grow_from(load_source(str(tmp_path)), {})
    start(mine, asked := [])
    assert asked == []
    assert mine.network.head("toy/values").mean.tolist() == [20.0, 20.0]


def test_new_numbers_start_from_data_and_taken_ones_stay(old: Network, tmp_path: Path) -> None:
    mine = module(spec("values", ("heart", "spine", "rib")))
    mine.grow_from(load_source(str(tmp_path)), {})
    start(mine, asked := [])
    assert asked == ["toy/values"]
    target: Any = make_batch("values", 8).target
    heart = target.values[target.known[:, 0], 0]
    for network in mine.networks.values():
        head = network.head("toy/values")
        torch.testing.assert_close(head.mean, torch.tensor([heart.mean(), 20.0, 20.0]))
        torch.testing.assert_close(head.spread, torch.tensor([heart.std(), 2.0, 2.0]))
        assert torch.equal(head.linear.weight[1], old.head("toy/values").linear.weight[1])
        assert torch.equal(head.linear.weight[2], old.head("toy/values").linear.weight[0])


def test_prototypes_are_for_new_classes_alone(old: Network, tmp_path: Path) -> None:
    task = spec("multilabel", ("heart", "lung", "rib"), prototypes=8)
    mine, alone = module(task), module(task)
    mine.grow_from(load_source(str(tmp_path)), {})
    head, theirs = mine.network.head(task.key), old.head(task.key)
    start(mine, [])
    assert torch.equal(head.linear.weight[1], theirs.linear.weight[2])
    assert torch.equal(head.linear.weight[2], theirs.linear.weight[0])
    # the class mean that a head of its own finds on the grown features
    alone.network.backbone.load_state_dict(old.backbone.state_dict())
    alone.network.projector.load_state_dict(old.projector.state_dict())
    start(alone, [])
    assert torch.equal(head.linear.weight[0], alone.network.head(task.key).linear.weight[0])


def test_features_that_are_random_and_locked_are_refused(old: Network, tmp_path: Path) -> None:
    task = spec("multilabel", ("rib",))
    source = load_source(str(tmp_path))
    with pytest.raises(ConfigError, match=r"the projector starts at random \(weight is 9 x"):
        module(task, train=("head",), width=9).grow_from(source, {})
    module(task, width=9).grow_from(source, {})
    module(task, train=("head",), width=8).grow_from(source, {})
    module(task, train=("head",), width=0).grow_from(source, {})
