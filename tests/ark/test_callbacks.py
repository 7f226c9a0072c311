from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ark.callbacks import CycleRunner, describe
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig
from toys import SIZE, make_task

KEY = "toy/multilabel"


@pytest.fixture
def module() -> ArkModule:
    phases = [Phase(KEY, ["backbone"], steps=2), Phase(KEY, [], steps=3)]
    cycle = Cycle(phases, [2, 3], cycles=2)
    backbone = BackboneConfig("test_efficientnet")
    return ArkModule([make_task("multilabel")], cycle, SIZE, backbone, teacher_update="phase")


def trainer_at(step: int, accumulate: int = 1) -> SimpleNamespace:
    place = {"global_rank": 0, "strategy": None}
    return SimpleNamespace(global_step=step, accumulate_grad_batches=accumulate, **place)


def test_locks_follow_the_step_also_after_a_resume_and_a_validation(module: ArkModule) -> None:
    def trains(runner: CycleRunner, step: int) -> bool:
        runner.on_train_batch_start(trainer_at(step), module, None, step)
        free = {p.requires_grad for p in module.network.backbone.parameters()}
        assert len(free) == 1
        assert module.network.backbone.training == free.copy().pop()
        assert module.network.heads.training
        return free.pop()

    runner = CycleRunner()
    runner.on_train_start(trainer_at(0), module)
    found = [trains(runner, step) for step in range(10)]
    assert found == [False, False, True, True, True] * 2
    resumed = CycleRunner()
    resumed.on_train_start(trainer_at(6), module)
    assert not trains(resumed, 6)
    module.train()  # what a validation leaves behind
    resumed.on_validation_end(trainer_at(6), module)
    assert not trains(resumed, 6)


def test_the_teacher_moves_only_when_the_optimiser_stepped(module: ArkModule, monkeypatch) -> None:
    updates: list[int] = []
    monkeypatch.setattr(module, "update_teacher", lambda at: updates.append(at.step))
    runner = CycleRunner()
    runner.on_train_start(trainer_at(0, accumulate=3), module)
    for batch in range(12):
        stepped = (batch + 1) // 3
        runner.on_train_batch_end(trainer_at(stepped, 3), module, None, None, batch)
    assert updates == [0, 1, 2, 3]


def test_randomness_is_a_function_of_step_micro_batch_and_seed(module: ArkModule) -> None:
    def draw(step: int, batch: int, accumulate: int = 1) -> float:
        runner = CycleRunner()
        runner.on_train_batch_start(trainer_at(step, accumulate), module, None, batch)
        return torch.rand(()).item()

    assert draw(3, 3) == draw(3, 3)
    assert len({draw(3, 3), draw(4, 4), draw(3, 6, 2), draw(3, 7, 2)}) == 3
    assert draw(3, 3) == draw(3, 6, 2)


def test_the_bar_names_cycle_task_and_lock(module: ArkModule) -> None:
    assert describe(module.cycle.at(0), 2) == f"cycle 1/2  {KEY}  lock backbone"
    assert describe(module.cycle.at(9), 2) == f"cycle 2/2  {KEY}  release"
