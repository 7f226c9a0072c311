"""Which strategies a run on several ranks may have."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl

from ark.distributed.ddp import check_strategy
from ark.distributed.fsdp import ShardedStrategy
from ark.types import ConfigError


def strategy_of(name: object) -> object:
    options = {"accelerator": "cpu", "devices": 2, "logger": False}
    return pl.Trainer(strategy=name, enable_progress_bar=False, **options).strategy


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp2", ShardedStrategy()])
def test_ours_are_taken(name: object) -> None:
    check_strategy(strategy_of(name))


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_false"])
def test_lightnings_own_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, ddp, fsdp2"):
        check_strategy(strategy_of(name))
