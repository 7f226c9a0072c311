"""Pictures, tables and files to whatever loggers a run has; numbers all of them take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.loggers import Logger as FabricLogger
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from tabulate import tabulate

from ark.tracking.wandb_logger import SteadyWandbLogger
from ark.types import ConfigError

PICTURES = (WandbLogger, TensorBoardLogger, MLFlowLogger)  # which of them show pictures


def takes_pictures(loggers: Sequence[Logger]) -> bool:
    return any(isinstance(logger, PICTURES) for logger in loggers)


def check_loggers(loggers: Sequence[Logger]) -> None:
    """Raises:
    ConfigError: a logger that cannot hold the names of Ark's metrics.
    """
    for logger in loggers:
        if isinstance(logger, MLFlowLogger) and logger.save_dir is not None:
            raise ConfigError(
                f"trainer.logger: MLFlowLogger that writes files ({logger.save_dir}) cannot hold a "
                "metric and the same metric by class (auroc, auroc/nodule), a file and a folder "
                "of one name; give it tracking_uri: sqlite:///FILE.db, or that of a server"
            )


@rank_zero_only
def log_numbers(loggers: Sequence[FabricLogger], values: dict[str, float], step: int) -> None:
    for logger in loggers if values else ():
        logger.log_metrics(values, step)


@rank_zero_only
def log_picture(loggers: Sequence[Logger], name: str, path: Path, step: int) -> None:
    """A picture's file, to those that show pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels(path), step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels(path), key=name, step=step)


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


@rank_zero_only
def log_table(
    loggers: Sequence[Logger],
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
) -> None:
    """As a table, or where there are none as text."""
    for logger in loggers if rows else ():
        if isinstance(logger, WandbLogger):
            logger.log_table(name, [*columns], [[*row] for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            text = tabulate(rows, columns, tablefmt="github", floatfmt=".4f")
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, MLFlowLogger):
            found = {c: [row[i] for row in rows] for i, c in enumerate(columns)}
            logger.experiment.log_table(logger.run_id, found, f"{name}/step{step}.json")


@rank_zero_only
def log_file(loggers: Sequence[Logger], path: Path) -> None:
    """A small file that belongs to the run, to those that keep files."""
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            _save(logger, path)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path))


def _save(logger: SteadyWandbLogger, path: Path) -> None:
    """A copy, because W&B would keep a link and the file may change before it is synced."""

    def save() -> None:
        if run := logger.experiment:
            shutil.copy(path, run.dir)
            run.save(Path(run.dir) / path.name, run.dir, policy="now")

    logger.softly(save)
