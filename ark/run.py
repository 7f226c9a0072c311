"""A run's folder: config, logs, checkpoints, metrics, pictures and report, each in its place."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities import rank_zero_only

from ark.callbacks import CycleProgressBar, CycleRunner
from ark.checkpoints.integrity import newest_intact
from ark.checkpoints.keeping import SavingConfig, checkpoint_callbacks
from ark.checkpoints.saving import LAST as LAST
from ark.cycle import Cycle, Unit
from ark.faults import Faults
from ark.forgetting import MATRIX, NUMBERS, PICTURE, Forgetting
from ark.growing.table import FILE as GROWTH
from ark.ledger import LEDGER, SKIPPED, Ledger
from ark.pictures import Pictures
from ark.published.lineage import FILE as LINEAGE
from ark.report import INTERVALS, REPORT, RESULTS, START
from ark.tracking.callbacks import tracking_callbacks
from ark.tracking.identity import WANDB_ID, Mode
from ark.tracking.session import CODE, SESSIONS
from ark.tracking.wandb_logger import wandb_logger
from ark.types import ConfigError

log = logging.getLogger("ark")
FAULTS = "faults"


@dataclass
class RunConfig:
    """Where a run writes and what it shows.

    Args:
        name: of the run and its folder.
        root: folder of all runs.
        wandb: "auto" is online where a key is set and offline elsewhere.
        panels: samples a task in what W&B, TensorBoard or MLflow show of each validation.
        artifacts: log checkpoints, the model and the datasets' versions as W&B artifacts.
        pictures: samples a task in the pictures at the end.
        bootstraps: draws of patients for the 95 % intervals of test scores; 0 leaves them out.
        baseline: score the test split before training too, for the table at the end; and the
            validation split, where forgetting is measured.
        validate: after what to validate: "cycle", "pass" (all phases of a task, one after the
            other), "phase" or "step". All but "cycle" measure forgetting and transfer too (see
            `ark.forgetting`).
        validate_every: after every how many of them.
        checkpoint_every: steps between checkpoints; one cycle if not given.
        saving: which checkpoints are kept beside the last two, and how they are written.
        timeout: seconds that a rank waits for the others, or for a batch of its loader's workers,
            before it ends with an error. More than any rank may need alone: to write shards, or
            the report.
        overwrite: start anew in a folder that holds another run's checkpoints.
        alone: instead of one run, train each task alone from the same start with the same steps,
            and print both side by side.
    """

    name: str = "run"
    root: str = "runs"
    wandb: Mode = "auto"
    panels: int = 4
    artifacts: bool = False
    pictures: int = 6
    bootstraps: int = 1000
    baseline: bool = True
    validate: Unit = "cycle"
    validate_every: int = 1
    checkpoint_every: int | None = None
    saving: SavingConfig = field(default_factory=SavingConfig)
    timeout: float = 1800.0
    overwrite: bool = False
    alone: bool = False

    def validates(self, cycle: Cycle, done: int) -> bool:
        """Whether the plan wants a validation when `done` optimiser steps are done."""
        if done == 0:
            return False
        last = cycle.at(done - 1)
        return (
            last.ends(self.validate) and (last.count(self.validate) + 1) % self.validate_every == 0
        )

    def saves(self, cycle: Cycle, done: int) -> bool:
        """Whether a regular checkpoint is written when `done` optimiser steps are done."""
        return done % (self.checkpoint_every or cycle.steps_per_cycle) == 0

    @property
    def measures_forgetting(self) -> bool:
        return self.validate != "cycle"

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
    if run.timeout <= 0:
        raise ConfigError(f"run.timeout={run.timeout}; expected a number of seconds above 0")
    run.saving.check()
    if ckpt_path is None:
        if any(run.checkpoints.glob("*.ckpt")) and not run.overwrite:
            raise ConfigError(
                f"{run.folder} holds a run with checkpoints; go on with it (--ckpt_path last), "
                "choose another --run.name, or start anew with --run.overwrite=true"
            )
    elif ckpt_path == "last":
        if not any(run.checkpoints.glob("*.ckpt")):
            raise ConfigError(f"ckpt_path: no checkpoint {run.checkpoints / LAST}")
    elif not Path(ckpt_path).exists():
        raise ConfigError(f"ckpt_path: no checkpoint {ckpt_path}")


def checkpoint_file(run: RunConfig, ckpt_path: str) -> Path:
    """The file that `ckpt_path` names; "last" is the newest intact one of this run.

    Raises:
        ConfigError: none is intact.
    """
    if ckpt_path != "last":
        return Path(ckpt_path)
    return newest_intact(run.checkpoints, rank_zero_only(log.warning))


@rank_zero_only
def clear_folder(run: RunConfig) -> None:
    """Makes the folder ready for a new run: what an earlier one wrote there goes."""
    for name in ("checkpoints", "logs", "model", "pictures", CODE, FAULTS):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    written = (START, RESULTS, INTERVALS, REPORT, WANDB_ID, SESSIONS, LEDGER, SKIPPED)
    for name in (*written, MATRIX, NUMBERS, PICTURE, GROWTH, LINEAGE):
        (run.folder / name).unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)


class Validation(Callback):
    """Validates where the plan says so, in place of Lightning's constant `val_check_interval`:
    phases and cycles differ in length.

    Lightning validates after micro-batches whose number `trainer.val_check_batch` divides; it is
    set before Lightning asks. A run that was killed between the checkpoint of a step and its
    validation does the validation when it goes on, which Lightning would take for done.
    """

    def __init__(self, run: RunConfig, cycle: Cycle) -> None:
        self.run, self.cycle = run, cycle
        self._done = 0  # optimiser steps
        self._validated = 0  # of them at the last validation

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._done = trainer.global_step
        trainer.val_check_batch = _NEVER
        if self.run.validates(self.cycle, self._done) and self._validated < self._done:
            # as Lightning's own training loop calls it
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *batch: Any
    ) -> None:
        stepped = trainer.global_step > self._done  # not while gradients still accumulate
        self._done = trainer.global_step
        due = stepped and self.run.validates(self.cycle, self._done)
        trainer.val_check_batch = 1 if due else _NEVER

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._validated = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated = state_dict["validated"]


_NEVER = sys.maxsize


def callbacks(
    run: RunConfig, cycle: Cycle, trainer: Mapping[str, Any], ledger: Ledger
) -> list[Callback]:
    """What every run does beside its steps, less what `trainer`'s options switch off.

    Lightning calls checkpoints last: the teacher in a checkpoint has had its update.

    Raises:
        ConfigError: `trainer.val_check_interval` and `run.validate` both say when to validate.
    """
    interval = trainer.get("val_check_interval")
    if interval is not None and run.validate != "cycle":
        raise ConfigError(
            f"trainer.val_check_interval={interval} and run.validate={run.validate}; drop one: "
            "run.validate and run.validate_every follow the plan"
        )
    found: list[Callback] = [CycleRunner(), Faults(run.folder / FAULTS), ledger]
    found.append(Pictures(run.folder / "pictures", run.pictures))
    if run.measures_forgetting:
        found.append(Forgetting(run.folder))
    found += tracking_callbacks(run.folder, run.panels)
    if interval is None and not trainer.get("fast_dev_run"):
        found.append(Validation(run, cycle))  # behind those who wait for one
    if trainer.get("enable_progress_bar") is not False:
        found.append(CycleProgressBar(refresh_rate=10))
    if trainer.get("logger") is not False:
        found.append(LearningRateMonitor(logging_interval="step"))
    if trainer.get("enable_checkpointing") is not False:
        every = run.checkpoint_every or cycle.steps_per_cycle
        found += checkpoint_callbacks(run.checkpoints, every, run.saving)
    return found


def loggers(run: RunConfig) -> list[Logger]:
    """CSV always; W&B as `run.wandb` says. A resumed run goes on in its own W&B run."""
    found: list[Logger] = [CSVLogger(run.folder, name="logs")]
    if run.wandb != "off":
        found.append(wandb_logger(run.folder, run.name, run.wandb))
    return found
