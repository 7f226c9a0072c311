from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from ark.callbacks import CycleRunner
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig
from ark.types import Batch
from toys import SIZE, make_batch, make_task


class Data:
    """Counts how often it is asked for samples."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def samples(self, task: str, count: int) -> Iterator[Batch]:
        self.asked.append((task, count))
        yield make_batch("values", 8)
        yield Batch(task, [], torch.zeros(0, 1, SIZE, SIZE), None, make_batch("values", 1).target)


def make_module() -> ArkModule:
    tasks = [make_task("values"), make_task("multilabel")]
    cycle = Cycle([Phase(task=task.key, lock=[], steps=1) for task in tasks], [1, 1], cycles=1)
    return ArkModule(tasks, cycle, image_size=SIZE, backbone=BackboneConfig("test_efficientnet"))


def test_a_new_run_starts_its_heads_once_for_student_and_teacher() -> None:
    module, data, runner = make_module(), Data(), CycleRunner()
    trainer = SimpleNamespace(ckpt_path=None, datamodule=data)
    runner.on_test_start(trainer, module)  # the score before training
    runner.on_fit_start(trainer, module)
    runner.on_test_start(trainer, module)  # and after it
    assert data.asked == [("toy/values", 256)]  # other heads want nothing
    target = make_batch("values", 8).target
    first = target.values[target.known[:, 0], 0]
    for network in module.networks.values():
        torch.testing.assert_close(network.head("toy/values").mean[0], first.mean())
        torch.testing.assert_close(network.head("toy/values").spread[0], first.std())


def test_a_run_that_goes_on_starts_nothing() -> None:
    module, data, runner = make_module(), Data(), CycleRunner()
    runner.on_fit_start(SimpleNamespace(ckpt_path="last.ckpt", datamodule=data), module)
    runner.on_test_start(SimpleNamespace(ckpt_path=None, datamodule=data), module)
    assert data.asked == []
    assert not module.network.head("toy/values").mean.any()
