"""Which checkpoints of a run are kept: the last two, the best by each metric, milestones."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from ark.checkpoints.saving import LAST
from ark.network import Network
from ark.scores import WHO, prefix
from ark.types import ConfigError


@dataclass
class SavingConfig:
    """Which checkpoints a run keeps beside the last one and the one before.

    Args:
        best: metric of the validation -> whether "max" or "min" is best.
        keep_best: how many of each metric's best are kept.
        milestone_every: steps between checkpoints that are kept for ever; none if not given.
        background: write while training goes on, which costs a copy of the state in host memory.
    """

    best: dict[str, Literal["max", "min"]] = field(default_factory=lambda: {"val/score": "max"})
    keep_best: int = 1
    milestone_every: int | None = None
    background: bool = True

    def check(self) -> None:
        """Raises:
        ConfigError: a number below 1, or a mode that is none.
        """
        every = self.milestone_every
        if self.keep_best < 1 or (every is not None and every < 1):
            raise ConfigError(
                f"run.saving: keep_best={self.keep_best}, milestone_every={every}; "
                "expected at least 1"
            )
        for metric, mode in self.best.items():
            if mode not in ("max", "min"):
                raise ConfigError(f"run.saving.best: {metric}: {mode!r}; expected max or min")


def check_best(config: SavingConfig, network: Network) -> None:
    """Raises:
    ConfigError: a metric of `config.best` that no validation gives.
    """
    scores = [f"{prefix('val', who)}/score" for who in WHO]
    if all(metric in scores for metric in config.best):
        return
    names = {key: list(head.metrics().compute()) for key, head in network.heads_by_key().items()}
    known = [
        *scores,
        *(f"{prefix('val', w)}/{k}/{n}" for w in WHO for k in names for n in names[k]),
    ]
    for metric in config.best:
        if metric not in known:
            near = difflib.get_close_matches(metric, known, n=5, cutoff=0.4) or known[:5]
            raise ConfigError(
                f"run.saving.best: {metric} is no metric of the validation; expected for instance "
                + ", ".join(near)
            )


def checkpoint_callbacks(folder: Path, every: int, config: SavingConfig) -> list[ModelCheckpoint]:
    """Lightning calls them after all other callbacks: a teacher that is saved had its update.

    Args:
        every: optimiser steps between the writings of LAST.
    """
    options: dict[str, Any] = {
        "auto_insert_metric_name": False,  # metric names hold "/", which would make folders
        "enable_version_counter": False,  # a step that is done again writes the same file again
    }
    found: list[ModelCheckpoint] = [
        BestCheckpoint(
            folder, _best_name(m), monitor=m, mode=mode, save_top_k=config.keep_best, **options
        )
        for m, mode in config.best.items()
    ]
    found.append(ModelCheckpoint(folder, Path(LAST).stem, every_n_train_steps=every, **options))
    if config.milestone_every is not None:
        options |= {"every_n_train_steps": config.milestone_every, "save_top_k": -1}
        found.append(Milestones(folder, "step-{step}", **options))  # after LAST: then a mere link
    return found


def _best_name(metric: str) -> str:
    return "best-{step}" if metric == "val/score" else f"best-{metric.replace('/', '-')}-{{step}}"


class Milestones(ModelCheckpoint):
    """Lightning tells callbacks of one class and interval apart by their class alone."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets the best scores when a run's folder is moved, and keeps a file
    for ever once a run went on from it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in _PATHS}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            {**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": scores}
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A score whose file is gone, or was left in another run's folder, does not count. All
        ranks go by the files that the first one sees."""
        super().on_train_start(trainer, pl_module)
        there = [path for path in self.best_k_models if Path(path).exists()]
        there = trainer.strategy.broadcast(there)
        self.best_k_models = {p: score for p, score in self.best_k_models.items() if p in there}
        if self.best_model_path not in there:
            first = max if self.mode == "max" else min
            scores = self.best_k_models
            self.best_model_path = first(scores, key=lambda p: float(scores[p]), default="")
            self.best_model_score = scores.get(self.best_model_path)

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        return previous != current and Path(previous).parent == Path(str(self.dirpath))


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
