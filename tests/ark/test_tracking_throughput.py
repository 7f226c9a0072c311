from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig
from ark.schedules import Constant
from ark.tracking import throughput
from ark.tracking.throughput import Throughput, resident
from toys import SIZE, make_batch, make_task


class Clock:
    """Seconds that a test lets pass."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Noted:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows[step] = values


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="module")
def module() -> ArkModule:
    plan = Cycle([Phase("toy/multilabel", steps=5)], [5], 4)
    backbone = BackboneConfig("test_efficientnet")
    schedules: dict[str, Any] = {"momentum": Constant(0.9), "consistency": Constant(0.25)}
    return ArkModule([make_task("multilabel")], plan, SIZE, backbone, **schedules)


def make_trainer(step: int = 0, world_size: int = 2) -> Any:
    return SimpleNamespace(
        global_step=step, world_size=world_size, log_every_n_steps=3, loggers=[Noted()],
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip


def run(callback: Throughput, trainer: Any, module: Any, clock: Clock, steps: int, micro: int = 1):
    """Each batch waits 1 s for data and computes 2 s."""
    for _ in range(steps):
        for part in range(micro):
            clock.now += 1.0
            callback.on_train_batch_start(trainer, module, None, 0)
            clock.now += 2.0
            trainer.global_step += part == micro - 1
            callback.on_train_batch_end(trainer, module, None, make_batch("multilabel", 4), 0)


def test_steps_samples_and_waiting(clock: Clock, module: ArkModule) -> None:
    callback, trainer = Throughput(), make_trainer()
    callback.on_train_start(trainer, module)
    run(callback, trainer, module, clock, 6)
    rows = trainer.loggers[0].rows
    assert sorted(rows) == [2, 5]  # the step that was just done, as the losses have it
    assert rows[5]["speed/steps_per_s"] == pytest.approx(3 / 9)
    assert rows[5]["speed/samples_per_s"] == pytest.approx(3 * 4 * 2 / 9)  # of both ranks
    assert rows[5]["speed/data_wait_s"] == pytest.approx(1)
    assert rows[5]["speed/data_wait"] == pytest.approx(3 / 9)
    assert rows[2]["speed/data_wait_s"] == pytest.approx(1)  # the start of the loader is no wait
    assert rows[5]["teacher/momentum"] == 0.9
    assert rows[5]["teacher/consistency_weight"] == 0.25
    assert (rows[2]["plan/cycle"], rows[5]["plan/cycle"]) == (1, 2)
    assert (rows[2]["plan/phase"], rows[5]["plan/phase"]) == (1, 2)


def test_validation_counts_neither_as_training_nor_as_waiting(clock, module: ArkModule) -> None:
    callback, trainer = Throughput(), make_trainer()
    callback.on_validation_start(trainer, module)  # the sanity check, before training
    callback.on_validation_end(trainer, module)
    callback.on_train_start(trainer, module)
    run(callback, trainer, module, clock, 4)
    callback.on_validation_start(trainer, module)
    clock.now += 1000
    callback.on_validation_end(trainer, module)
    run(callback, trainer, module, clock, 2)
    row = trainer.loggers[0].rows[5]
    assert row["speed/steps_per_s"] == pytest.approx(3 / 9)
    assert row["speed/data_wait_s"] == pytest.approx(1)


def test_a_checkpoint_slows_training_but_is_no_wait_for_data(clock, module: ArkModule) -> None:
    callback, trainer = Throughput(), make_trainer()
    callback.on_train_start(trainer, module)
    run(callback, trainer, module, clock, 4)
    callback.on_save_checkpoint(trainer, module, {})
    clock.now += 6
    run(callback, trainer, module, clock, 2)
    row = trainer.loggers[0].rows[5]
    assert row["speed/steps_per_s"] == pytest.approx(3 / 15)
    assert row["speed/data_wait_s"] == pytest.approx(1)


def test_accumulated_batches_are_one_step(clock: Clock, module: ArkModule) -> None:
    callback, trainer = Throughput(), make_trainer(step=3, world_size=1)
    callback.on_train_start(trainer, module)
    run(callback, trainer, module, clock, 3, micro=2)
    row = trainer.loggers[0].rows[5]
    assert row["speed/steps_per_s"] == pytest.approx(3 / 18)
    assert row["speed/samples_per_s"] == pytest.approx(3 * 2 * 4 / 18)


def test_memory_grows_with_what_is_kept() -> None:
    before = resident()
    kept = torch.ones(25_000_000)
    assert resident() - before > 0.9 * kept.nbytes
    assert before < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_no_step_asks_the_device(monkeypatch, clock: Clock, module: ArkModule) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("waits for the device")

    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    monkeypatch.setattr(torch.Tensor, "cpu", refuse)
    callback, trainer = Throughput(), make_trainer()
    callback.on_train_start(trainer, module)
    run(callback, trainer, module, clock, 3)
    assert trainer.loggers[0].rows
