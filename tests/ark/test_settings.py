"""No setting is read and then ignored: changing any one of the module's changes what is trained.

The published Foundation X computed its schedules and then overwrote them (spec foundation_x.md,
fault 5).
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ark.callbacks import CycleRunner
from ark.consistency import Agreement
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig, ProjectorConfig
from ark.pseudo import PseudoLabels
from ark.schedules import Constant, Cosine
from toys import CLASSES, SIZE, make_batch, make_task

KINDS = ("multilabel", "segmentation")
LENGTHS = (2, 3)
GIVEN = {"tasks", "cycle", "image_size"}  # not settings of the method


def train(**options: Any) -> dict[str, torch.Tensor]:
    """Student and teacher after two cycles of two phases."""
    tasks = [make_task(kind) for kind in KINDS]
    phases = [Phase(task.key, steps=n) for task, n in zip(tasks, LENGTHS, strict=True)]
    cycle = Cycle(phases, LENGTHS, cycles=2)
    options = {
        "backbone": BackboneConfig("test_efficientnet"),
        "optimizer": partial(torch.optim.SGD, lr=0.05, weight_decay=0.01),
        "momentum": Constant(0.5),
        **options,
    }
    torch.manual_seed(0)
    module = ArkModule(tasks, cycle, SIZE, **options)
    batches = [
        make_batch(cycle.at(step).phase.task.split("/")[1], 4) for step in range(cycle.total_steps)
    ]
    for batch in batches:
        batch.teacher_images = batch.teacher_images // 2
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[CycleRunner()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return {name: value.clone() for name, value in module.state_dict().items()}


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
    "hierarchy": {"hierarchy": 0.5},
    "seed": {"seed": 1},
}
SAYS_NOTHING_ALONE = {"ontology"}  # it is what `hierarchy` and the report read
AGAINST = {"momentum_by_length": {"teacher_update": "phase"}}


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
    momenta = [module.now(module.momentum, cycle.at(step)) for step in (1, 4, 6, 9)]
    assert momenta == pytest.approx([Cosine(0.9, 1.0)(k, 4) for k in range(4)])
