"""FSDP2 for backbones that outgrow a GPU: student's and teacher's are sharded over all ranks.

Heads, projector and shared decoders stay whole on each rank: they are small, and use their
parameters as a batch wants (no boxes, no use), while FSDP2 reduces a module's gradients in one
piece and hangs where ranks disagree. Their gradients are averaged in one all-reduce when the
backward is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ark import ranks
from ark.integrity import is_sharded
from ark.module import ArkModule
from ark.network import Network
from ark.shards import read_folder, write_folder
from ark.types import ConfigError

LEAST = 0.01  # of the backbone's parameters: smaller modules are gathered with what holds them


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
        super().setup_environment()

    def shard(self, module: ArkModule) -> None:
        """Student's and teacher's backbone; once."""
        if isinstance(module.network.backbone, FSDPModule):
            return
        check_supported(module)
        for network in (module.network, module.teacher.network):
            shard(network, self.device_mesh["data_parallel"])

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

    @staticmethod
    @torch.no_grad()
    def clip_norm(parameters: Iterable[nn.Parameter], limit: float) -> None:
        """`nn.utils.clip_grad_norm_` where some gradients are sharded."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        squares = torch.zeros(2, device=grads[0].device)  # of shards and of what is whole
        for grad in grads:
            squares[int(not isinstance(grad, DTensor))] += ranks.local(grad).float().square().sum()
        dist.all_reduce(squares[:1])
        factor = (limit / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
        for grad in grads:
            ranks.local(grad).mul_(factor)

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
        if not is_sharded(Path(checkpoint_path)):
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
            return parameters[int(keys[1])][int(keys[3])] if parameters else None

        return read_folder(Path(checkpoint_path), like)

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


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Shards the backbone: each member of a list or sequence that holds at least LEAST of its
    parameters is gathered by itself, and the rest together."""
    least = LEAST * sum(p.numel() for p in network.backbone.parameters())
    containers = [
        m for m in network.backbone.modules() if isinstance(m, nn.ModuleList | nn.Sequential)
    ]
    for container in reversed(containers):  # from the inside
        for member in container:
            if isinstance(member, nn.ModuleList | FSDPModule):
                continue  # no forward before which it could be gathered
            if sum(p.numel() for p in member.parameters()) >= least:
                fully_shard(member, mesh=mesh)
    fully_shard(network.backbone, mesh=mesh)


def average_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Averages over ranks the gradients of what is not sharded. One that no rank has stays None."""
    trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    if not trained:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    used = torch.tensor([float(p.grad is not None) for p in trained], device=grads[0].device)
    flat = ranks.mean(torch.cat([*(g.flatten() for g in grads), used]))
    *parts, used = flat.split([*(g.numel() for g in grads), len(trained)])
    missing = any(p.grad is None for p in trained)  # only then the device is waited for
    somewhere = (used > 0).tolist() if missing else [True] * len(trained)
    for parameter, part, anyone in zip(trained, parts, somewhere, strict=True):
        if anyone:
            parameter.grad = part.view_as(parameter).clone()


def sharded_as(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, if it belongs to one that is sharded."""
    whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if whole and isinstance(like, DTensor) and value.shape == like.shape:
        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def check_supported(module: ArkModule) -> None:
    """Raises:
    ConfigError: a setting that reads or changes whole gradients of the backbone.
    """
    asked = {
        "surgery": module.surgery is not None,
        "agvm": module.agvm is not None,
        "balance": module.balance.layer is not None,
        "norm_penalty": any(p.startswith("backbone") for p in module.norm_penalty.paths),
    }
    for name, set_ in asked.items():
        if set_:
            raise ConfigError(
                f"model.{name}: reads whole gradients or parameters, which no rank has under "
                "trainer.strategy=fsdp2; drop it, or use strategy ddp"
            )
