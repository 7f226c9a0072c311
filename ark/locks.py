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
    its phase. Under DDP wrap anew afterwards (`ark.distributed.ddp`): a parameter frozen when DDP
    wraps and released later gets different gradients on each rank (docs/design.md).
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


def locked_modules(network: Network, phase: Phase) -> list[nn.Module]:
    """The modules that stand still in a phase, in the order in which to lock them.

    Of a concurrent phase `head` in `lock` or `train` means the head of each of its tasks.

    Raises:
        ConfigError: a name is no module.
    """
    if not phase.train:
        return [network.part(name, task) for name in phase.lock for task in phase.members]
    free = {
        id(module)
        for name in phase.train
        for task in phase.members
        for module in network.part(name, task).modules()
    }
    return _largest_without(network, free)


def idle_modules(network: Network, phase: Phase) -> list[nn.Module]:
    """The modules that no task of a phase runs: heads of others and what only these share."""
    used = {
        id(module)
        for task in phase.members
        for part in network.used_by(task)
        for module in part.modules()
    }
    return _largest_without(network, used)


def _largest_without(module: nn.Module, free: set[int]) -> list[nn.Module]:
    """The largest modules below `module` that hold none of `free`; together they are all the rest.

    A module with parameters of its own beside a free child would leave these unlocked; Ark's
    parts have none, and `check_phase` sees to it.
    """
    if id(module) in free:
        return []
    if not any(id(child) in free for child in module.modules()):
        return [module]
    return [found for child in module.children() for found in _largest_without(child, free)]


def check_phase(network: Network, phase: Phase) -> None:
    """A lock that names nothing, or leaves nothing to train, must fail before training.

    Raises:
        ConfigError: names the phase and its locks.
    """
    stands = {id(p) for module in locked_modules(network, phase) for p in module.parameters()}
    if phase.train:
        wanted = {
            id(p)
            for name in phase.train
            for task in phase.members
            for p in network.part(name, task).parameters()
        }
        loose = [n for n, p in network.named_parameters() if id(p) not in stands | wanted]
        if loose:
            raise ConfigError(
                f"cycle: the phase of {phase.name} has train {phase.train}, but {loose[0]} lies "
                "beside these in a module that they share, so it cannot be locked alone; name "
                "that module, or list what to `lock`"
            )
    for name in (*phase.lock, *phase.train):
        if not any(list(network.part(name, task).parameters()) for task in phase.members):
            raise ConfigError(
                f"cycle: the phase of {phase.name} names {name!r}, which has no parameters in this "
                "network; drop it"
            )
    for task in phase.members:
        used = [p for module in network.used_by(task) for p in module.parameters()]
        if all(id(p) in stands or not p.requires_grad for p in used):
            raise ConfigError(
                f"cycle: the phase of {task} ({phase.state}) leaves nothing to train; release a "
                "part or remove the phase"
            )
