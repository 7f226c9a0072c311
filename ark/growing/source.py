"""Weights to start from, and what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ark.errors import ConfigError
from ark.published.lineage import Lineage

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
        said: what was read of a file that is not Ark's, and how.
    """

    where: str
    which: str
    architecture: Mapping[str, Any]
    state: Mapping[str, Tensor]
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    lineage: Lineage = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

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
