"""A run's folder: config, logs, checkpoints, metrics, pictures and report, each in its place."""

from __future__ import annotations

import netrc
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from ark.callbacks import CycleProgressBar, CycleRunner
from ark.cycle import Cycle
from ark.ledger import LEDGER, SKIPPED, Ledger
from ark.pictures import Pictures
from ark.report import INTERVALS, REPORT, RESULTS, START
from ark.types import ConfigError

LAST = "last.ckpt"
WANDB_ID = "wandb_id.txt"


@dataclass
class RunConfig:
    """Where a run writes and what it shows.

    Args:
        name: of the run and its folder.
        root: folder of all runs.
        wandb: "auto" is online where a key is set and offline elsewhere.
        pictures: samples a task in the pictures at the end.
        bootstraps: draws of patients for the 95 % intervals of test scores; 0 leaves them out.
        baseline: score the test split before training too, for the table at the end.
        validate_every: cycles between validations.
        checkpoint_every: steps between checkpoints; one cycle if not given.
        overwrite: start anew in a folder that holds another run's checkpoints.
        alone: instead of one run, train each task alone from the same start with the same steps,
            and print both side by side.
    """

    name: str = "run"
    root: str = "runs"
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    pictures: int = 6
    bootstraps: int = 1000
    baseline: bool = True
    validate_every: int = 1
    checkpoint_every: int | None = None
    overwrite: bool = False
    alone: bool = False

    def steps_between(self, cycle: Cycle) -> int:
        """Optimiser steps from one validation to the next."""
        return cycle.steps_per_cycle * self.validate_every

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def check_folder(run: RunConfig, ckpt_path: str | None) -> None:
    """Refuses to mix two runs in a folder, and to resume what is not there. Changes nothing.

    Raises:
        ConfigError: names the folder and what can be done.
    """
    every = run.checkpoint_every
    if run.validate_every < 1 or (every is not None and every < 1):
        raise ConfigError(
            f"run: validate_every={run.validate_every}, checkpoint_every={every}; "
            "expected at least 1"
        )
    if ckpt_path is None:
        if any(run.checkpoints.glob("*.ckpt")) and not run.overwrite:
            raise ConfigError(
                f"{run.folder} holds a run with checkpoints; go on with it (--ckpt_path last), "
                "choose another --run.name, or start anew with --run.overwrite=true"
            )
    elif not checkpoint_file(run, ckpt_path).is_file():
        raise ConfigError(f"ckpt_path: no checkpoint {checkpoint_file(run, ckpt_path)}")


def checkpoint_file(run: RunConfig, ckpt_path: str) -> Path:
    """The file that `ckpt_path` names; "last" is the newest of this run."""
    return run.checkpoints / LAST if ckpt_path == "last" else Path(ckpt_path)


@rank_zero_only
def clear_folder(run: RunConfig) -> None:
    """Makes the folder ready for a new run: what an earlier one wrote there goes."""
    for name in ("checkpoints", "logs", "model", "pictures"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for name in (START, RESULTS, INTERVALS, REPORT, WANDB_ID, LEDGER, SKIPPED):
        (run.folder / name).unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)


def callbacks(
    run: RunConfig, cycle: Cycle, trainer: Mapping[str, Any], ledger: Ledger
) -> list[Callback]:
    """What every run does beside its steps, less what `trainer`'s options switch off.

    Lightning calls checkpoints last: the teacher in a checkpoint has had its update.
    """
    found: list[Callback] = [CycleRunner(), ledger]
    found.append(Pictures(run.folder / "pictures", run.pictures))
    if trainer.get("enable_progress_bar") is not False:
        found.append(CycleProgressBar(refresh_rate=10))
    if trainer.get("logger") is not False:
        found.append(LearningRateMonitor(logging_interval="step"))
    if trainer.get("enable_checkpointing") is not False:
        every = run.checkpoint_every or cycle.steps_per_cycle
        found.append(_checkpoint(run, "best-{step}", monitor="val/score", mode="max"))
        found.append(
            _checkpoint(
                run, Path(LAST).stem, every_n_train_steps=every, enable_version_counter=False
            )
        )
    return found


def _checkpoint(run: RunConfig, filename: str, **options: Any) -> ModelCheckpoint:
    # metric names hold "/", which would make folders of file names
    return ModelCheckpoint(run.checkpoints, filename, auto_insert_metric_name=False, **options)


def loggers(run: RunConfig) -> list[Logger]:
    """CSV always; W&B as `run.wandb` says. A resumed run goes on in its own W&B run."""
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
                id=_wandb_id(run),
            )
        )
    return found


@rank_zero_only
def _wandb_id(run: RunConfig) -> str:
    path = run.folder / WANDB_ID
    if not path.is_file():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
