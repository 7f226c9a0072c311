"""Locks: in each phase parts of the network stand still."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ark.cycle import Phase
from ark.network import Network
from ark.types import ConfigError


class Locks:
    """Applies a phase's locks to a network, and remembers what may train at all.

    Made before the first lock. What to lock comes from the step, so a resumed run just applies
    its phase. Under DDP apply only after wrapping: a parameter frozen when DDP wraps and released
    later gets different gradients on each rank (docs/design.md).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._trainable = [p for p in network.parameters() if p.requires_grad]

    def apply(self, locked: Iterable[nn.Module]) -> None:
        """Locked modules: no gradients (None, so no optimiser moves them) and eval mode (BatchNorm,
        dropout and drop-path stand still). Everything else trains."""
        self.network.train()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        for module in locked:
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None


def check_phase(network: Network, phase: Phase) -> None:
    """A lock that names nothing, or leaves nothing to train, must fail before training.

    Raises:
        ConfigError: names the phase and its locks.
    """
    locked = {id(p) for name in phase.lock for p in network.part(name, phase.task).parameters()}
    used = [p for module in network.used_by(phase.task) for p in module.parameters()]
    if all(id(p) in locked or not p.requires_grad for p in used):
        raise ConfigError(
            f"cycle: the phase of {phase.task} locks {phase.lock}, which leaves nothing to train; "
            "release a part or remove the phase"
        )
