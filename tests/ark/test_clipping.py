"""Gradients are clipped by the least limit of the tasks that train, whatever else there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from ark.balance import Uncertainty
from ark.callbacks import CycleRunner
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig
from toys import SIZE, make_batch, make_task

KINDS = ("multilabel", "segmentation")
KEYS = [make_task(kind).key for kind in KINDS]


class Norms(Callback):
    """The norm of the network's gradient that the optimiser sees, by step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: ArkModule, *_) -> None:
        grads = [p.grad for p in module.network.parameters() if p.grad is not None]
        self.found.append(float(torch.nn.utils.get_total_norm(grads)))


@pytest.mark.parametrize(
    ("trainer", "clip", "expected"),
    [
        (0.01, {"segmentation": 0.05}, [0.01, 0.05, 0.01]),
        (0.01, {KEYS[1]: 0.05, "multilabel": 0.02}, [0.02, 0.05, 0.02]),
        (None, {"segmentation": 1e-3}, [None, 1e-3, 1e-3]),
        (0.01, {}, [0.01, 0.01, 0.01]),
    ],
)
def test_the_least_limit_of_those_that_train_counts(trainer, clip, expected) -> None:
    phases = [Phase(KEYS[0], steps=1), Phase(KEYS[1], steps=1), Phase(tasks=KEYS, steps=1)]
    module = ArkModule(
        [make_task(kind) for kind in KINDS],
        Cycle(phases, [1, 1, 1], cycles=1),
        SIZE,
        BackboneConfig("test_efficientnet"),
        clip=clip,
        balance=Uncertainty if clip else None,  # what it learns is no part of the norm
    )
    batches = [make_batch(kind, 4) for kind in KINDS]
    batches.append(replace(batches[0], others=[batches[1]]))
    for batch in batches:
        for part in batch.parts:
            part.teacher_images = part.images
    norms = Norms()
    pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=trainer,
        callbacks=[CycleRunner(), norms],
    ).fit(module, DataLoader(batches, batch_size=None))  # fmt: skip
    for found, limit in zip(norms.found, expected, strict=True):
        assert found == pytest.approx(limit, rel=1e-3) if limit else found > 0.1
