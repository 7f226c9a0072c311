"""Lightning's WandbLogger, which an outage of W&B cannot stop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from ark.tracking.identity import Mode, run_id, wandb_mode

log = logging.getLogger("ark")
AXIS = "trainer/global_step"  # Lightning's name for the optimiser steps done; every metric's axis
INIT_TIMEOUT = 30.0  # seconds until a run begins offline
FINISH_TIMEOUT = 60.0  # seconds for the last uploads; what is missing then is on the disk


class SteadyWandbLogger(WandbLogger):
    """Goes on offline where W&B fails, in the same run, and says so once.

    A server that cannot be reached at the start, a wandb-core that dies, a full disk: the rest of
    the session goes to a folder of its own under `save_dir`/wandb, which `wandb sync` joins with
    the others of its id. Where that fails too, nothing is sent any more. Training goes on.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._wandb_init.pop("anonymous")  # Lightning's None makes wandb warn
        self._failures = 0
        self._preempted = False

    @property
    def offline(self) -> bool:
        """Whether the run is kept on this disk, as far as it was decided here."""
        return self._wandb_init.get("mode") == "offline"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run; on ranks but the first, and where W&B failed twice, one that is deaf."""
        while self._experiment is None:
            try:
                return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
            except Exception as error:
                self._fail(error)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.softly(lambda: WandbLogger.log_metrics(self, metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self.softly(lambda: WandbLogger.log_hyperparams(self, params))

    def softly(self, act: Callable[[], Any]) -> None:
        """Around everything that talks to W&B: its failures must not stop a run. Tried again
        offline; what is wrong with a value is a fault of ours, and raised."""
        for _ in range(2):
            try:
                act()
                return
            except _failures() as error:
                self._fail(error)

    def mark_preempted(self) -> None:
        """The session will be requeued."""
        self._preempted = True
        self.softly(lambda: self.experiment.mark_preempting())

    def finish(self, exit_code: int) -> None:
        """Closes the session's part of the run; writes and sends what is left."""
        import wandb

        run, self._experiment = self._experiment, None
        if run is not None:
            # W&B shows a preempted run that exits with 0 as finished
            code = exit_code or int(self._preempted)
            with suppress(*_failures()):
                run.finish(exit_code=code)
            # offline, `finish` returns before the file is written: seen in 1 of 10 short runs
            with suppress(*_failures()):
                wandb.teardown(exit_code=code)

    def _fail(self, error: Exception) -> None:
        import wandb

        self._failures += 1
        if self._failures == 1:
            log.warning(
                "W&B: %s: %s. Training goes on; this run is kept on the disk from here on, and "
                "`wandb sync %s/wandb/offline-run-*` sends it",
                *(type(error).__name__, error, self.save_dir),
            )
        with suppress(Exception):
            wandb.teardown()  # else its service holds the run's id, and refuses it
        wandb.run = None  # else Lightning goes on with the run that failed
        self._wandb_init["mode"] = "offline"
        self._experiment = None if self._failures == 1 else _Deaf()  # type: ignore[assignment]


class _Deaf:
    """A run that takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> _Deaf:
        return self

    def __call__(self, *args: Any, **options: Any) -> _Deaf:
        return self

    def __bool__(self) -> bool:
        return False


def _failures() -> tuple[type[Exception], ...]:
    """What wandb raises where it, its service or the disk fails."""
    from wandb.errors import Error
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    return Error, ServerResponseError, OSError


def wandb_logger(folder: Path, name: str, mode: Mode) -> SteadyWandbLogger:
    """Of a run's folder: one W&B run over all its sessions.

    WANDB_PROJECT (default "ark"), WANDB_ENTITY, WANDB_RUN_GROUP and WANDB_TAGS say where it goes.

    Args:
        mode: "auto" is online where a key is set and offline elsewhere.
    """
    return SteadyWandbLogger(
        project=os.environ.get("WANDB_PROJECT", "ark"),
        name=name,
        save_dir=folder,
        id=run_id(folder),
        mode=wandb_mode(mode),
        settings={
            "init_timeout": INIT_TIMEOUT,
            "finish_timeout": FINISH_TIMEOUT,
            "quiet": True,  # a page of curves would hide the run's own table
        },
    )


@rank_zero_only
def mark_preempted(loggers: Sequence[Logger]) -> None:
    """Before a run that will be requeued is stopped: W&B shows it as preempted, not as failed."""
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            logger.mark_preempted()
