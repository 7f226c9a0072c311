"""Pictures at the end of a run: truth, student and teacher side by side, one file a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ark.module import ArkModule
from ark.scores import WHO
from ark.tracking.samples import FirstSamples
from ark.tracking.sinks import log_picture
from ark.types import Batch


class Pictures(Callback):
    """Keeps the first samples of each task of a test and draws them when it ends.

    Args:
        folder: for `<dataset>/<task>.png`.
        count: samples a task; 0 draws nothing.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._samples = FirstSamples(count)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._samples = FirstSamples(self.count if trainer.is_global_zero else 0)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._samples.add(batch, outputs)  # the score before training has no teacher to show

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ArkModule)
        for task, kept in self._samples.kept.items():
            if not kept:
                continue
            path = self.folder / f"{task}.png"
            draw(module, task, kept, path)
            log_picture(trainer.loggers, f"pictures/{task}", path, trainer.global_step)


def draw(module: ArkModule, task: str, kept: list[dict[str, Any]], path: Path) -> None:
    """Writes one picture: a row a sample; columns truth, student, teacher."""
    from matplotlib.figure import Figure  # matplotlib costs a second: not at every start

    columns = ("truth", *WHO)
    figure = Figure(figsize=(3 * len(columns), 3.2 * len(kept)), layout="constrained")
    grid = figure.subplots(len(kept), len(columns), squeeze=False)
    heads = {who: network.head(task) for who, network in module.networks.items()}
    heads["truth"] = heads["student"]
    for row, item in zip(grid, kept, strict=True):
        for axes, name in zip(row, columns, strict=True):
            heads[name].draw(axes, item["image"], item[name], 0, truth=name == "truth")
            title = f"{name}: {axes.get_title('left')}".rstrip(": ")
            axes.set_title(title, fontsize=7, loc="left")
        row[0].set_title(f"{item['key']}\n{row[0].get_title('left')}", fontsize=7, loc="left")
    figure.suptitle(task, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
