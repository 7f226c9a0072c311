"""Checkpoints and the published model as W&B artifacts, with the datasets they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ark.tracking.facts import DatasetVersion
from ark.tracking.wandb_logger import SteadyWandbLogger

if TYPE_CHECKING:
    from wandb import Artifact


@rank_zero_only
def publish(
    loggers: Sequence[Logger],
    checkpoints: Mapping[str, Path],
    model: Path,
    versions: Mapping[str, DatasetVersion],
) -> None:
    """Logs `checkpoint-<id>` in a version for each of `checkpoints`, and `model-<id>`.

    Datasets are references: where their index is and its hash, none of their data. Online
    they are inputs of the run, so that W&B draws the lineage; of an offline run W&B takes no
    inputs, and it says in each artifact's metadata what that would show.

    Args:
        checkpoints: alias ("last", "best") -> file.
        model: folder of what was published; left out where it is missing.
        versions: of the datasets, by name.
    """
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            _publish(logger, checkpoints, model, versions)


def _publish(
    logger: SteadyWandbLogger,
    checkpoints: Mapping[str, Path],
    model: Path,
    versions: Mapping[str, DatasetVersion],
) -> None:
    for name, version in versions.items():
        _log(logger, partial(dataset_artifact, name, version), ["latest"], used=True)
    facts = {"datasets": {name: asdict(version) for name, version in versions.items()}}
    files: dict[Path, list[str]] = {}
    for alias, path in checkpoints.items():
        files.setdefault(path, []).append(alias)  # the best one may be the last one
    for path, aliases in files.items():
        _log(logger, partial(_files, f"checkpoint-{logger.version}", path, facts), aliases)
    if model.is_dir():
        _log(logger, partial(_files, f"model-{logger.version}", model, facts), ["latest"])


def dataset_artifact(name: str, version: DatasetVersion) -> Artifact:
    """A version of a dataset; equal where the index is."""
    place = version.index
    uri = place if urlsplit(place).scheme else Path(place).resolve().as_uri()
    artifact = _artifact(name, "dataset", asdict(version))
    # a reference alone has the digest of its address
    with artifact.new_file("version.json") as file:
        json.dump({"sha256": version.sha256, "samples": version.samples}, file)
    artifact.add_reference(uri, name="index", checksum=False)
    return artifact


def _files(name: str, path: Path, facts: dict[str, Any]) -> Artifact:
    artifact = _artifact(name, name.partition("-")[0], facts)
    if path.is_dir():
        artifact.add_dir(str(path), skip_cache=True)
    else:
        artifact.add_file(str(path), skip_cache=True)
    return artifact


def _artifact(name: str, kind: str, metadata: dict[str, Any]) -> Artifact:
    from wandb import Artifact

    return Artifact(name, kind, metadata=metadata)


def _log(
    logger: SteadyWandbLogger, make: Callable[[], Artifact], aliases: list[str], used: bool = False
) -> None:
    def log() -> None:
        run = logger.experiment
        if used and not run.offline:
            run.use_artifact(make(), aliases=aliases)
        else:
            run.log_artifact(make(), aliases=aliases)

    logger.softly(log)


def checkpoint_files(callbacks: Sequence[Checkpoint], last: Path) -> dict[str, Path]:
    """Alias -> file, of those that are there."""
    found = {"last": last}
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            found["best"] = Path(callback.best_model_path)
    return {alias: path for alias, path in found.items() if path.is_file()}
