"""No setting is read and then ignored: changing any one of the module's changes what is trained.

The published Foundation X computed its schedules and then overwrote them (spec foundation_x.md,
fault 5).
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ark.agvm import AGVMConfig
from ark.balance import DynamicWeightAverage, Fixed, GradNorm, Uncertainty
from ark.callbacks import CycleRunner
from ark.consistency import Agreement
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig, ProjectorConfig
from ark.pseudo import PseudoLabels
from ark.schedules import Constant, Cosine
from ark.surgery import CAGrad, PCGrad
from toys import CLASSES, SIZE, make_batch, make_task

KINDS = ("multilabel", "segmentation")
LENGTHS = (2, 3)
GIVEN = {"tasks", "cycle", "image_size"}  # not settings of the method


def train(together: bool = False, **options: Any) -> dict[str, torch.Tensor]:
    """Student and teacher after two cycles of two phases.

    Args:
        together: both tasks train in every step.
    """
    tasks = [make_task(kind) for kind in KINDS]
    keys = [task.key for task in tasks]
    phases = [
        Phase(tasks=keys if together else [key], steps=n)
        for key, n in zip(keys, LENGTHS, strict=True)
    ]
    cycle = Cycle(phases, LENGTHS, cycles=2)
    options = {
        "backbone": BackboneConfig("test_efficientnet"),
        "optimizer": partial(torch.optim.SGD, lr=0.05, weight_decay=0.01),
        "momentum": Constant(0.5),
        **options,
    }
    torch.manual_seed(0)
    module = ArkModule(tasks, cycle, SIZE, **options)
    batches = []
    for step in range(cycle.total_steps):
        parts = [make_batch(key.split("/")[1], 4) for key in cycle.at(step).phase.members]
        for part in parts:
            part.teacher_images = part.teacher_images // 2
        batches.append(replace(parts[0], others=parts[1:]))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[CycleRunner()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    state = module.state_dict()
    return {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return train()


@pytest.fixture(scope="module")
def ontology(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("ontology") / "chest.yaml"
    first, second, third = CLASSES
    path.write_text(f"{first}: {{parents: [{third}]}}\n{second}: {{}}\n{third}: {{}}\n")
    return str(path)


CHANGES: dict[str, dict[str, Any]] = {
    "backbone": {"backbone": BackboneConfig("test_efficientnet", args={"act_layer": "relu"})},
    "projector": {"projector": ProjectorConfig(8)},
    "optimizer": {"optimizer": partial(torch.optim.SGD, lr=0.05, weight_decay=0.02)},
    "lr_scale": {"lr_scale": {"backbone": 0.5}},
    "layer_decay": {"layer_decay": 0.5},
    "lr_schedule": {"lr_schedule": Constant(0.5)},
    "lr_clock": {"lr_clock": "phase"},
    "clip": {"clip": {"segmentation": 1e-3}},
    "norm_penalty": {"norm_penalty": {"backbone": 1e-2}},
    "momentum": {"momentum": Constant(0.6)},
    "teacher_update": {"teacher_update": "phase"},
    "momentum_by_length": {"momentum_by_length": True, "teacher_update": "phase"},
    "consistency": {"consistency": Constant(0.4)},
    "agreement": {"agreement": Agreement(distance="cosine")},
    "pseudo_labels": {"pseudo_labels": {"multilabel": PseudoLabels(low=0.49, high=0.5)}},
    "balance": {"balance": partial(Fixed, weights={"multilabel": 2.0})},
    "surgery": {"surgery": PCGrad(), "together": True},
    "agvm": {"agvm": AGVMConfig(interval=1, warmup=0)},
    "hierarchy": {"hierarchy": 0.5},
    "seed": {"seed": 1},
}
SAYS_NOTHING_ALONE = {"ontology"}  # it is what `hierarchy` and the report read
AGAINST: dict[str, dict[str, Any]] = {
    "momentum_by_length": {"teacher_update": "phase"},
    "surgery": {"together": True},
}


def test_every_setting_is_here() -> None:
    settings = set(inspect.signature(ArkModule).parameters) - GIVEN
    assert settings == set(CHANGES) | SAYS_NOTHING_ALONE


@pytest.mark.parametrize("setting", CHANGES)
def test_a_changed_setting_changes_the_training(
    setting: str, base: dict[str, torch.Tensor], ontology: str
) -> None:
    change = CHANGES[setting] | ({"ontology": ontology} if setting == "hierarchy" else {})
    before = train(**AGAINST[setting]) if setting in AGAINST else base
    after = train(**change)
    same = [n for n in before if n in after and before[n].shape == after[n].shape]
    assert any(not torch.equal(before[name], after[name]) for name in same)


def test_the_same_settings_are_the_same_training(base: dict[str, torch.Tensor]) -> None:
    again = train()
    assert all(torch.equal(value, again[name]) for name, value in base.items())


def test_a_schedule_counts_what_its_clock_says() -> None:
    """Cosine of 4 phases in place of 10 steps: constant within a phase."""
    tasks = [make_task(kind) for kind in KINDS]
    phases = [Phase(task.key, steps=n) for task, n in zip(tasks, LENGTHS, strict=True)]
    cycle = Cycle(phases, LENGTHS, cycles=2)
    module = ArkModule(
        tasks, cycle, SIZE, BackboneConfig("test_efficientnet"), lr_schedule=Cosine(1.0, 0.0),
        lr_clock="phase", teacher_update="phase", momentum=Cosine(0.9, 1.0),
    )  # fmt: skip
    factors = [module._rate(step) for step in range(10)]
    expected = [Cosine(1.0, 0.0)(k, 4) for k in (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)]
    assert factors == pytest.approx(expected)
    momenta = [module.teaching.momentum_at(cycle.at(step)) for step in (1, 4, 6, 9)]
    assert momenta == pytest.approx([Cosine(0.9, 1.0)(k, 4) for k in range(4)])


@pytest.mark.parametrize("balance", [Uncertainty, GradNorm, DynamicWeightAverage])
@pytest.mark.parametrize("together", [False, True])
def test_a_balance_learns_what_travels_with_the_weights(balance: Any, together: bool) -> None:
    """Its state is in the module's, and after two cycles it is not what it was at the start."""
    learned = train(together, balance=balance)
    start = balance([make_task(kind) for kind in KINDS]).state_dict()
    assert start
    moved = {name: learned[f"balance.{name}"] for name in start}
    assert all(value.isfinite().all() for name, value in moved.items() if name != "before")
    assert any(not torch.equal(value, start[name]) for name, value in moved.items())


def test_cagrad_is_another_step_than_the_sum_and_than_pcgrad() -> None:
    found = [train(True, surgery=s) for s in (None, PCGrad(), CAGrad(0.0), CAGrad(0.9))]
    plain, pcgrad, none, cagrad = (f["network.backbone.model.conv_stem.weight"] for f in found)
    torch.testing.assert_close(none, plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(pcgrad, cagrad, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(plain, cagrad, rtol=1e-4, atol=1e-6)
