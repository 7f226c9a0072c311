"""A session of a run: from a start or a requeue to its end, whatever ends it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ark.tracking import facts
from ark.tracking.identity import write_whole
from ark.tracking.sinks import check_loggers, log_file
from ark.tracking.wandb_logger import SteadyWandbLogger

SESSIONS, CODE = "sessions.json", "code"  # in the run's folder


@contextmanager
def session(
    loggers: Sequence[Logger],
    folder: Path,
    recipe: Mapping[str, Any],
    versions: Mapping[str, facts.DatasetVersion],
    world_size: int = 1,
) -> Iterator[None]:
    """Logs what the run is made of; at the end closes W&B, also after an error, an interrupt or
    `sys.exit`: what a process that simply ends had not written yet would be lost.

    Args:
        folder: of the run.
        recipe: the whole configuration, as plain data.
        versions: of the datasets, by name.
        world_size: ranks.

    Raises:
        ConfigError: a logger that cannot take Ark's metrics.
    """
    check_loggers(loggers)
    data_dir = os.environ.get(_DATA_DIR)
    # W&B stages tables and artifacts there, in the home if it is not told otherwise; `wandb sync`
    # reads them
    os.environ[_DATA_DIR] = data_dir or str(folder.resolve() / "wandb")
    code = 1
    try:
        _describe(loggers, folder, recipe, versions, world_size)
        yield
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    finally:
        finish(loggers, code)
        if data_dir is None:
            os.environ.pop(_DATA_DIR, None)


_DATA_DIR = "WANDB_DATA_DIR"


def finish(loggers: Sequence[Logger], exit_code: int) -> None:
    """Closes W&B; `session` does it, and may do it again."""
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            logger.finish(exit_code)


@rank_zero_only
def _describe(
    loggers: Sequence[Logger],
    folder: Path,
    recipe: Mapping[str, Any],
    versions: Mapping[str, facts.DatasetVersion],
    world_size: int,
) -> None:
    states = facts.repositories()
    now = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": {name: state.record() for name, state in states.items()},
        "environment": facts.environment(world_size),
        "versions": {name: asdict(version) for name, version in versions.items()},
    }
    sessions = [*read_sessions(folder), now]
    write_whole(folder / SESSIONS, json.dumps(sessions, indent=1) + "\n")
    for logger in loggers:
        logger.log_hyperparams({**recipe, **now, "sessions": len(sessions)})
    for patch in facts.write_patches(states, folder / CODE):
        log_file(loggers, patch)
    log_file(loggers, folder / SESSIONS)


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """What each session of the run was made of, the first one first."""
    path = folder / SESSIONS
    return json.loads(path.read_text()) if path.is_file() else []
