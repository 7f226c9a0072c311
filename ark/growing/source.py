"""Weights to start from, and what they belong to. Nothing of theirs is built or imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ark.checkpoint import ARCHITECTURE, load_state
from ark.errors import ConfigError
from ark.published import lineage
from ark.published.config import CONFIG, check_weights, read_config
from ark.published.lineage import Lineage
from ark.published.loading import find

Which = Literal["teacher", "student"]


@dataclass
class Source:
    """
    Args:
        where: as the user named it.
        which: "teacher" or "student", or what a published model says of itself.
        architecture: see `Network.architecture`.
        state: of the whole network, by the names of `Network.state_dict`.
        mean, std: of the three channels, as a published model states them; [] of a run's own.
        lineage: what it is, and what it began as itself.
    """

    where: str
    which: str
    architecture: Mapping[str, Any]
    state: Mapping[str, Tensor]
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    lineage: Lineage = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The tasks as plain data, by `<dataset>/<task>`."""
        return by_key(self.architecture)

    @property
    def shared(self) -> list[str]:
        """Names of the parts that heads share."""
        names = (name.split(".")[1] for name in self.state if name.startswith("shared."))
        return list(dict.fromkeys(names))

    def check_names(self, names: Mapping[str, str | None]) -> None:
        """
        Raises:
            ConfigError: an old name is no task here.
        """
        for new, old in names.items():
            if old is not None and old not in self.tasks:
                raise ConfigError(
                    f"init_names: {new}: {old!r} is no task of {self.where}; it has "
                    f"{list(self.tasks)}"
                )

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix.`, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.state.items() if k.startswith(start)}


def by_key(architecture: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks of an architecture by `<dataset>/<task>`."""
    return {f"{t['dataset']}/{t['name']}": t for t in architecture["tasks"]}


def load_source(where: str, which: Which = "teacher") -> Source:
    """Reads a published folder or repository, a run's folder, its model/, or a checkpoint's file.

    Raises:
        ConfigError: nothing of these is there, it is damaged, or it lacks that network.
    """
    try:
        return _load(where, which)
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error


def _load(where: str, which: Which) -> Source:
    path = Path(where).expanduser()
    own = any((path / name).exists() for name in ("model", ARCHITECTURE))
    if path.is_file() or (own and not (path / CONFIG).is_file()):
        architecture, state = load_state(path, which)
        return Source(where, which, architecture, state, lineage=lineage.of_run(path, which))
    if not path.is_dir() and path.suffix in (".ckpt", ".pth", ".pt", ".safetensors"):
        raise ConfigError(f"{where}: no such file")
    return _published(find(str(path) if path.is_dir() else where), where, which)


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
