"""FSDP2 for backbones that outgrow a GPU: student's and teacher's are sharded over all ranks.

Heads, projector and shared decoders stay whole on each rank: they are small, and use their
parameters as a batch wants (no boxes, no use), while FSDP2 reduces a module's gradients in one
piece and hangs where ranks disagree. Their gradients are averaged in one all-reduce when the
backward is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ark.checkpoints.shards import read_folder, write_folder
from ark.distributed import ranks
from ark.distributed.sharding import (
    average_whole,
    check_optimizer,
    check_options,
    check_supported,
    clip_norm,
    shard,
    sharded_as,
)
from ark.module import ArkModule
from ark.signals import at_once


class ShardedStrategy(ModelParallelStrategy):
    """`trainer.strategy: fsdp2`. Goes on from any checkpoint, on any number of ranks.

    Args:
        save_distributed_checkpoint: each rank writes its part into a folder. Otherwise the first
            writes one file of whole tensors, as without sharding: ddp goes on from it too.
        kwargs: of Lightning's ModelParallelStrategy.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)
        self._accumulating = False

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        with at_once():
            super().setup_environment()

    def shard(self, module: ArkModule) -> None:
        """Student's and teacher's backbone; once."""
        if isinstance(module.network.backbone, FSDPModule):
            return
        trainer = module.trainer
        check_supported(module)
        check_options(str(trainer.precision), trainer.gradient_clip_algorithm)
        # what is gathered in inference mode could never be trained with
        trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        trainer.validate_loop.inference_mode = trainer.test_loop.inference_mode = False
        for network in (module.network, module.teacher.network):
            shard(network, self.device_mesh["data_parallel"])

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            check_optimizer(optimizer)

    # ranks score unlike numbers of batches, and each gathering waits for all ranks

    def on_validation_start(self) -> None:
        self._gather(True)

    def on_validation_end(self) -> None:
        self._gather(False)

    def on_test_start(self) -> None:
        self._gather(True)

    def on_test_end(self) -> None:
        self._gather(False)

    def _gather(self, whole: bool) -> None:
        assert self.lightning_module is not None
        for part in self.lightning_module.modules():
            if isinstance(part, FSDPModule):
                part.set_reshard_after_forward(not whole)
                part.unshard() if whole else part.reshard()

    # -- gradients ------------------------------------------------------------------------------

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While micro-batches accumulate. Shards are reduced each time, which saves memory."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def post_backward(self, closure_loss: Tensor) -> None:
        if not self._accumulating and ranks.several():
            assert self.lightning_module is not None
            average_whole(self.lightning_module.parameters())

    clip_norm = staticmethod(clip_norm)

    # -- checkpoints ----------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the first rank."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._gathered(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Every rank must ask: whole tensors in host memory; on other ranks than the first none."""
        if self._save_distributed_checkpoint:
            return state

        def whole(shards: DTensor) -> Tensor | None:
            tensor = shards.full_tensor()
            return tensor.cpu() if self.is_global_zero else None

        return apply_to_collection(state, DTensor, whole)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        write_folder(checkpoint, Path(self.broadcast(filepath)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        if not Path(checkpoint_path).is_dir():
            return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        parameters = [
            list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
            for optimizer in self.optimizers
        ]

        def like(keys: list[str]) -> Tensor | None:
            if keys[0] == "state_dict":
                return state.get(keys[1])
            return parameters[int(keys[1])][int(keys[3])]

        without = () if parameters else ("optimizer_states",)
        return read_folder(Path(checkpoint_path), like, without)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {n: sharded_as(v, mine.get(n)) for n, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            theirs = chain.from_iterable(group["params"] for group in saved["param_groups"])
            mine = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            parameters = dict(zip(theirs, mine, strict=True))
            state = {
                number: {name: sharded_as(value, parameters[number]) for name, value in of.items()}
                for number, of in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register("fsdp2", ShardedStrategy, "the backbone sharded over all ranks")
