"""Data parallelism for a plan of phases: DDP over what trains now, and nothing else.

DDP fixes at wrapping which gradients it sends. A phase has its own head and its own locks, so the
module is wrapped anew when these change: 10 ms, and neither locked parameters nor the heads of
other tasks are ever sent (measured against other ways: docs/benchmarks.md).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import (
    DDPStrategy,
    ParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from pytorch_lightning.strategies.ddp import _sync_module_states
from torch.nn.parallel import DistributedDataParallel

from ark.errors import ConfigError
from ark.signals import at_once


class PhaseDDPStrategy(DDPStrategy):
    """`trainer.strategy: ddp`, and what `auto` means on several devices.

    Args:
        find_unused_parameters: a rank whose images have no boxes uses fewer than the others.
        kwargs: of Lightning's DDPStrategy and of torch's DistributedDataParallel.
    """

    def __init__(self, find_unused_parameters: bool = True, **kwargs: Any) -> None:
        super().__init__(
            find_unused_parameters=find_unused_parameters,
            broadcast_buffers=False,  # BatchNorm's statistics: `ark.distributed.ranks`
            init_sync=False,  # weights are equal from the start
            **kwargs,
        )

    def setup_environment(self) -> None:
        with at_once():
            super().setup_environment()

    def configure_ddp(self) -> None:
        """Only makes all ranks start alike: nothing is known yet of the first phase."""
        assert self.lightning_module is not None
        _sync_module_states(self.lightning_module)

    def enter_phase(self) -> None:
        """Called when other parameters than before require gradients, between optimiser steps."""
        assert self.lightning_module is not None
        self.model = None  # the old wrapper lets go of its buckets before there are new ones
        self.model = self._setup_model(self.lightning_module)
        self._register_ddp_hooks()

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        return self.model if isinstance(self.model, DistributedDataParallel) else None


def limit_waiting(strategy: Strategy, seconds: float) -> None:
    """How long a rank waits for another one before it gives up; before the strategy is set up."""
    if hasattr(strategy, "_timeout"):  # of Lightning's strategies with a process group
        strategy._timeout = timedelta(seconds=seconds)


def check_strategy(strategy: Strategy) -> None:
    """Raises:
    ConfigError: one of Lightning's own for several ranks, which know nothing of phases: they fail
        where a phase does not use all parameters, or hang.
    """
    kind = type(strategy)
    if isinstance(strategy, ParallelStrategy) and kind.__module__.startswith("pytorch_lightning."):
        raise ConfigError(
            f"trainer.strategy: {kind.__name__} of Lightning knows nothing of phases and locks; "
            "expected auto, ddp, fsdp2 or a class of your own"
        )


StrategyRegistry.register(
    "ddp", PhaseDDPStrategy, "DDP over what trains in each phase", override=True
)
