"""Parts of heads that several tasks use: one decoder for all datasets, say.

The network owns them, so that each is in the weights, in the optimiser and in the teacher once. A
head keeps a reference that torch does not count as a child of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ark.errors import ConfigError
from ark.seeds import seed_of


class SharedParts(nn.ModuleDict):
    """Modules by the name that heads ask for them with; a lock names one as `shared.NAME`."""

    def __init__(self) -> None:
        super().__init__()
        self._seed = torch.initial_seed()  # a head that asks may have a seed of its own
        self._made: dict[str, tuple[str, Any]] = {}  # name -> (who asked first, its recipe)

    def ask(self, name: str, recipe: Any, make: Callable[[], nn.Module], who: str) -> nn.Module:
        """The part of that name; the first who asks has it made.

        Args:
            recipe: what decides how `make` builds it, as plain data.
            who: the task that asks, for messages.

        Raises:
            ConfigError: another task asked for it with another recipe, or the name has a dot.
        """
        if name not in self:
            if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
                raise ConfigError(
                    f"head of task {who}: shared is {name!r}; expected a name of letters, digits "
                    "and '_', such as masks, because weights and locks are named after it"
                )
            # its start does not depend on which task came first
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self._seed, "shared", name))
                self[name] = make()
            self._made[name] = who, recipe
        first, theirs = self._made[name]
        if theirs != recipe:
            raise ConfigError(
                f"head of task {who}: the shared part {name!r} was made for {first} with {theirs}, "
                f"but is now asked for with {recipe}; make their arguments equal, or share under "
                "another name"
            )
        return self[name]
