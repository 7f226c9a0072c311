"""A part that starts at random must be trained by somebody."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ark.cycle import Phase
from ark.errors import ConfigError
from ark.growing.grow import Growth
from ark.locks import locked_modules
from ark.network import Network


def check_trained(network: Network, phases: Iterable[Phase], growth: Growth) -> None:
    """
    Raises:
        ConfigError: the projector or a shared part is new, heads use it, and no phase trains it: a
            linear probe of random features.
    """
    modules = {"projector": network.projector}
    modules |= {f"shared {name}": part for name, part in network.shared.items()}
    for row in growth.rows:
        if row.state == "new" and row.part in modules:
            module = modules[row.part]
            using = [p for p in phases if _uses(network, p, module)]
            if using and not any(_trains(network, p, module) for p in using):
                raise ConfigError(
                    f"init_from: the {row.part} starts at random ({row.note or 'new here'}), but "
                    f"every phase that uses it locks it; give it the arguments that it has in "
                    f"{growth.where}, or let a phase of `cycle` train it"
                )


def _uses(network: Network, phase: Phase, module: nn.Module) -> bool:
    return any(module is part for task in phase.members for part in network.used_by(task))


def _trains(network: Network, phase: Phase, module: nn.Module) -> bool:
    still = {id(p) for m in locked_modules(network, phase) for p in m.parameters()}
    return any(id(p) not in still for p in module.parameters())
