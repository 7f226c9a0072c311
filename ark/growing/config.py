"""`--init_from`, `--init_names` and `--init_which`: from whose weights a new run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ark.errors import ConfigError
from ark.growing.loading import load_source
from ark.growing.source import Source, Which

# name on the command line and in a recipe: (type, default, help)
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "init_from": (
        str | None,
        None,
        "start a NEW run from these weights: a published folder, a hub's owner/name, a run's "
        "folder, a checkpoint's file, a file of the papers or an encoder's",
    ),
    "init_names": (
        dict[str, str | None],
        {},
        "task key of this run: task key there, where they differ; null: a new head",
    ),
    "init_which": (Which, "teacher", "the network of the two that gives the weights"),
}


@dataclass(frozen=True)
class InitConfig:
    """
    Args:
        source: a published folder, a hub's repository, a run's folder, a training checkpoint, or a
            file that `ark import` reads.
        names: task key of this run -> task key there, where they differ; None: a new head.
        which: the network of the two that gives the weights.
    """

    source: str | None = None
    names: dict[str, str | None] = field(default_factory=dict)
    which: Which = "teacher"

    @classmethod
    def of(cls, config: Any) -> InitConfig:
        """From the whole configuration, whose keys of the top level these are."""
        names = config.init_names
        names = names if isinstance(names, dict) else vars(names)
        return cls(config.init_from, dict(names), config.init_which)

    def check(self, declared: Sequence[str]) -> None:
        """
        Args:
            declared: task keys of all datasets of the recipe, also of those that `data.only`
                leaves out (`run.alone` leaves out all but one).

        Raises:
            ConfigError: names without a source, or a new name that is no task of this run.
        """
        if self.names and self.source is None:
            raise ConfigError(
                f"init_names: {self.names}, but no init_from says whose names these are; add "
                "--init_from=PATH or drop --init_names"
            )
        for new in self.names:
            if new not in declared:
                raise ConfigError(
                    f"init_names: {new!r} (before the colon) is no task of this run; it has "
                    f"{list(declared)}"
                )

    def load(self, backbone: Mapping[str, Any]) -> Source:
        """
        Args:
            backbone: {"name", "image_size", "args"} of this run.

        Raises:
            ConfigError: nothing is there that can be read, or it has not a task of `names`.
        """
        assert self.source is not None
        source = load_source(self.source, self.which, backbone)
        source.check_names(self.names)
        return source

    def settings(self) -> dict[str, Any]:
        """What a run that goes on must share with its checkpoint; nothing where nothing is said."""
        if self.source is None:
            return {}
        return {"init_from": self.source, "init_names": self.names, "init_which": self.which}
