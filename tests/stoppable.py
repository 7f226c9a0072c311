"""A run of seconds that can be stopped at any moment, on any number of ranks; also a program."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ark.checkpoints.saving import LAST, SealedCheckpointIO
from ark.signals import outlive_signals
from ark.stopping import GracefulStop, plugins, resolve_auto

STEPS, ACCUMULATED, VALIDATED = (
    12,
    2,
    5,
)  # optimiser steps, batches of each, batches of a validation


class Numbers(IterableDataset[Tensor]):
    """The numbers of the batches that are still to come."""

    def __init__(self, module: Toy) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Tensor]:
        done = self.module.trainer.global_step * ACCUMULATED
        yield from torch.arange(done, STEPS * ACCUMULATED)

    def __len__(self) -> int:
        return STEPS * ACCUMULATED


class Toy(pl.LightningModule):
    """Adam, dropout, a rate that changes: what a wrong resume would show in.

    Args:
        slow: a rank that is slow in its backward.
        workers: of the loaders.
    """

    def __init__(self, slow: int | None, workers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
        self.slow, self.workers = slow, workers

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        torch.manual_seed(1000 * int(batch) + self.global_rank)
        self.log("lr", self.optimizers().param_groups[0]["lr"], batch_size=1)
        if self.slow is not None:
            time.sleep(0.1)
        return self.net(torch.randn(3, 4)).square().mean()

    def on_after_backward(self) -> None:
        if self.slow == self.global_rank:
            time.sleep(0.3)

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val", self.net(torch.ones(1, 4)).sum(), sync_dist=True, batch_size=1)

    def test_step(self, batch: Tensor, index: int) -> None:
        self.log("test", self.net(torch.ones(1, 4)).sum(), sync_dist=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Any:
        options = {"num_workers": self.workers, "worker_init_fn": outlive}
        return DataLoader(Numbers(self), batch_size=None, **options)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(range(VALIDATED), batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def outlive(_: int) -> None:
    outlive_signals()


class Say(Callback):
    """Writes a line a batch; sends signals to this process and its workers where told.

    Args:
        file: for the lines of this rank.
        kills: what and when: "train:STEP", "backward:STEP", "val:STEP" or "test:0" -> signals.
    """

    def __init__(self, file: Path, kills: dict[str, list[int]]) -> None:
        self.file, self.kills = file, kills

    def _at(self, where: str, step: int) -> None:
        with self.file.open("a") as file:
            file.write(f"{where}:{step}\n")
        for number in self.kills.pop(f"{where}:{step}", []):
            for worker in multiprocessing.active_children():  # SLURM signals all processes
                os.kill(worker.pid, number)  # type: ignore[arg-type]
            os.kill(os.getpid(), number)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._at("train", trainer.global_step)

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        self._at("backward", trainer.global_step)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._at("val", trainer.global_step)

    def on_test_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._at("test", 0)


class Pause(Callback):
    """Time for someone else to send signals."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


def main(args: list[str]) -> None:
    """The run; in its folder a file of lines a rank and session, and weights at its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=json.loads, default={}, help='{"RANK": {"WHEN": [SIGNAL]}}')
    parser.add_argument("--slow", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds in each batch")
    options = parser.parse_args(args)
    folder = options.folder
    module = Toy(options.slow, options.workers)
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    session = len(list(folder.glob(f"lines{rank}_*")))
    say = Say(folder / f"lines{rank}_{session}", options.kills.get(str(rank), {}))
    stop = GracefulStop(folder / LAST)
    often = ModelCheckpoint(folder, "last", every_n_train_steps=5, enable_version_counter=False)
    ranks = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1)))
    nodes = int(os.environ.get("SLURM_NNODES", os.environ.get("GROUP_WORLD_SIZE", 1)))
    warnings.filterwarnings("ignore")
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks // nodes, num_nodes=nodes, max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATED, val_check_interval=6, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, strategy="ddp" if ranks > 1 else "auto",
        logger=pl.loggers.CSVLogger(folder, "logs"),
        callbacks=[say, Pause(options.pause), stop, often],
        plugins=[*plugins(), SealedCheckpointIO()],
    )  # fmt: skip
    last = resolve_auto("auto", folder, overwrite=False) and folder / LAST
    with stop.listening():
        if last is None:
            trainer.test(module, verbose=False)
        trainer.fit(module, ckpt_path=last)
        trainer.test(module, verbose=False)
    if trainer.is_global_zero:
        torch.save(module.state_dict(), folder / "end.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
