"""Pictures at the end of a run: truth, student and teacher side by side, one file a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger

from ark.module import ArkModule
from ark.scores import WHO
from ark.types import Batch


class Pictures(Callback):
    """Keeps the first samples of each task of a test and draws them when it ends.

    Args:
        folder: for `<dataset>/<task>.png`.
        count: samples a task; 0 draws nothing.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._kept: dict[str, list[dict[str, Any]]] = {}

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._kept = {}

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        kept = self._kept.setdefault(batch.task, [])
        missing = self.count - len(kept)
        # the score before training has no teacher to show
        if set(outputs) != set(WHO) or not trainer.is_global_zero or missing <= 0:
            return
        batch = batch.to("cpu")
        shown = {"truth": batch.target, **{who: p.to("cpu") for who, p in outputs.items()}}
        for index, key in enumerate(batch.keys[:missing]):
            mine = {name: value.item(index) for name, value in shown.items()}
            kept.append({"key": key, "image": batch.images[index], **mine})

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ArkModule)
        for task, kept in self._kept.items():
            if not kept:
                continue
            path = self.folder / f"{task}.png"
            draw(module, task, kept, path)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"pictures/{task}", [str(path)])


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
