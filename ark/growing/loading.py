"""Where a start comes from: a folder, a hub, a checkpoint's file. No code of theirs is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file

from ark.checkpoint import ARCHITECTURE, is_training, load_state
from ark.errors import ConfigError
from ark.growing.foreign import foreign_source
from ark.growing.source import Source, Which
from ark.importing.reading import read
from ark.published import lineage
from ark.published.config import CONFIG, WEIGHTS, check_weights, read_config
from ark.published.loading import find

SUFFIXES = (".ckpt", ".pth", ".pt", ".tar", ".bin", ".safetensors")


def load_source(
    where: str, which: Which = "teacher", backbone: Mapping[str, Any] | None = None
) -> Source:
    """Reads a published folder or repository, a run's folder, its model/, a checkpoint's file, a
    file of the papers or an encoder's.

    Args:
        backbone: {"name", "image_size", "args"} of the run, as which an encoder's file is read.

    Raises:
        ConfigError: nothing of these is there, it is damaged, or it lacks that network.
    """
    try:
        return _load(where, which, backbone)
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error


def _load(where: str, which: Which, backbone: Mapping[str, Any] | None) -> Source:
    path = Path(where).expanduser()
    own = any((path / name).exists() for name in ("model", ARCHITECTURE))
    if path.is_file():
        return _from_file(path, where, which, backbone)
    if own and not (path / CONFIG).is_file():
        architecture, state = load_state(path, which)
        return Source(where, which, architecture, state, lineage=lineage.of_run(path, which))
    if (path / ".metadata").is_file():
        raise ConfigError(
            f"{where}: is a checkpoint of shards (fsdp2); start from its run's folder, in which a "
            "finished run leaves model/"
        )
    if not path.is_dir() and path.suffix in SUFFIXES:  # else it may be a hub's owner/name
        raise ConfigError(f"{where}: no such file")
    return _published(find(str(path) if path.is_dir() else where), where, which)


def _from_file(path: Path, where: str, which: Which, backbone: Mapping[str, Any] | None) -> Source:
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return _published(path.parent, where, which)
    if (path.parent / ARCHITECTURE).is_file() and path.stem in get_args(Which):
        architecture, state = load_state(path.parent, path.stem)
        before = lineage.of_run(path.parent, path.stem)
        return Source(where, path.stem, architecture, state, lineage=before)
    content = read(path)
    if is_training(content):
        architecture, state = load_state(path, which)
        return Source(where, which, architecture, state, lineage=lineage.of_run(path, which))
    return foreign_source(path, content, which, backbone)


def _published(folder: Path, where: str, which: Which) -> Source:
    """One network; which of the two it is, it says itself."""
    facts = read_config(folder)
    if which == "student" and facts.which == "teacher":
        raise ConfigError(
            f"{where}: holds the teacher alone; drop --init_which=student, or start from the run's "
            "folder, which has both"
        )
    weights = check_weights(folder, facts)
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{weights}: is damaged: {error}") from error
    if facts.parts == "backbone":
        state = {f"backbone.model.{name}": value for name, value in state.items()}
    before = lineage.of_model(facts)
    return Source(where, facts.which, facts.architecture, state, facts.mean, facts.std, before)
