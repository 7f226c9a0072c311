"""The same few images at every validation: truth, student and teacher."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, WandbLogger

from ark.module import ArkModule
from ark.pictures import draw
from ark.scores import WHO
from ark.tracking.overlays import layers
from ark.tracking.samples import FirstSamples
from ark.tracking.sinks import log_picture, takes_pictures
from ark.types import Batch


class Panels(Callback):
    """Logs `panels/<dataset>/<task>` at validations of the training.

    W&B gets images with boxes and masks as layers, at each. Other loggers, and tasks that have
    neither, get the picture that the head draws, at the first validation in each cycle: it takes
    most of a second. `validation_step` returns the predictions.

    Args:
        count: samples of a task, always the first of its validation split; 0: none.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._samples = FirstSamples(count)
        self._drawn = -1  # the last cycle of which pictures were drawn

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._samples = FirstSamples(self.count if _shows(trainer) else 0)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._samples.add(batch, outputs or {})

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ArkModule)
        step, found = trainer.global_step, self._samples.kept
        cycle = module.cycle.at(max(step - 1, 0)).cycle
        for task, kept in found.items():
            if kept:
                rest = log_layers(trainer.loggers, module, task, kept, step)
                if cycle > self._drawn:
                    log_drawn(rest, module, task, kept, step)
        self._drawn = cycle if found else self._drawn
        self._samples = FirstSamples(0)


def _shows(trainer: pl.Trainer) -> bool:
    fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
    return fitting and trainer.is_global_zero and takes_pictures(trainer.loggers)


def log_layers(
    loggers: Sequence[Logger], module: ArkModule, task: str, kept: list[dict[str, Any]], step: int
) -> list[Logger]:
    """Images with boxes or masks to W&B; returns the loggers that got none."""
    classes = module.network.tasks[task].classes
    found = [layers({n: item[n] for n in ("truth", *WHO)}, classes) for item in kept]
    takes = [logger for logger in loggers if isinstance(logger, WandbLogger) and all(found)]
    for logger in takes:
        options = {name: [layer[name] for layer in found if layer] for name in found[0] or {}}
        images = [item["image"].permute(1, 2, 0).numpy().squeeze() for item in kept]
        captions = [item["key"] for item in kept]
        logger.log_image(f"panels/{task}", images, step=step, caption=captions, **options)
    return [logger for logger in loggers if logger not in takes]


def log_drawn(
    loggers: Sequence[Logger], module: ArkModule, task: str, kept: list[dict[str, Any]], step: int
) -> None:
    """The head's own picture, where a logger shows pictures."""
    if takes_pictures(loggers):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "panel.png"
            draw(module, task, kept, path)
            log_picture(loggers, f"panels/{task}", path, step)
