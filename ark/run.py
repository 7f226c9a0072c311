"""A run's folder: config, logs, checkpoints, metrics, pictures and report, each in its place."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from ark.callbacks import CycleProgressBar, CycleRunner
from ark.cycle import Cycle
from ark.pictures import Pictures
from ark.report import REPORT, RESULTS, START
from ark.types import ConfigError


@dataclass
class RunConfig:
    """Where a run writes and what it shows.

    Args:
        name: of the run and its folder.
        root: folder of all runs.
        wandb: "auto" is online where a key is set and offline elsewhere.
        pictures: samples a task in the pictures at the end.
        baseline: score the test split before training too, for the table at the end.
        validate_every: cycles between validations.
        checkpoint_every: steps between checkpoints; as often as validations if not given.
        overwrite: start anew in a folder that holds another run's checkpoints.
        alone: instead of one run, train each task alone from the same start with the same steps,
            and print both side by side.
    """

    name: str = "run"
    root: str = "runs"
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    pictures: int = 6
    baseline: bool = True
    validate_every: int = 1
    checkpoint_every: int | None = None
    overwrite: bool = False
    alone: bool = False

    def steps_between(self, cycle: Cycle) -> int:
        """Optimiser steps from one validation and checkpoint to the next."""
        return cycle.steps_per_cycle * self.validate_every

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def open_folder(run: RunConfig, resumes: bool) -> None:
    """Makes the run's folder and refuses to mix two runs in it.

    Raises:
        ConfigError: it holds another run's checkpoints and neither resuming nor overwriting was
            asked for.
    """
    old = list(run.checkpoints.glob("*.ckpt"))
    if old and not (resumes or run.overwrite):
        raise ConfigError(
            f"{run.folder} holds a run with checkpoints; go on with it (--ckpt_path last), choose "
            "another --run.name, or start anew with --run.overwrite=true"
        )

    if not resumes:
        for path in [*old, *(run.folder / name for name in (START, RESULTS, REPORT))]:
            path.unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)


def callbacks(run: RunConfig, cycle: Cycle) -> list[Callback]:
    """What every run does beside its steps. Lightning calls checkpoints last: the teacher in a
    checkpoint has had its update."""
    return [
        CycleRunner(),
        CycleProgressBar(refresh_rate=10),
        LearningRateMonitor(logging_interval="step"),
        Pictures(run.folder / "pictures", run.pictures),
        _checkpoint(run, "best-{step}", monitor="val/score", mode="max"),
        _checkpoint(
            run,
            "step-{step}",
            save_last="link",
            every_n_train_steps=run.checkpoint_every or run.steps_between(cycle),
        ),
    ]


def _checkpoint(run: RunConfig, filename: str, **options: Any) -> ModelCheckpoint:
    # metric names hold "/", which would make folders of file names
    return ModelCheckpoint(run.checkpoints, filename, auto_insert_metric_name=False, **options)


def loggers(run: RunConfig) -> list[Logger]:
    """CSV always; W&B as `run.wandb` says."""
    found: list[Logger] = [CSVLogger(run.folder, name="logs")]
    if run.wandb != "off":
        offline = run.wandb == "offline" or (run.wandb == "auto" and not _wandb_key())
        found.append(
            WandbLogger(
                project="ark",
                name=run.name,
                save_dir=run.folder,
                offline=offline,
                resume="allow",
                id=run.name.replace("/", "-"),
            )
        )
    return found


def _wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
