"""Locks: in each phase parts of the network stand still."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


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
