"""What sharding a network by FSDP2 takes: which modules, whole tensors beside shards, and what
cannot be had then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ark.distributed import ranks
from ark.module import ArkModule
from ark.network import Network
from ark.types import ConfigError

LEAST = 0.01  # of the backbone's parameters: smaller modules are gathered with what holds them
PRECISIONS = ("32-true", "bf16-mixed")


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Shards the backbone: each member of a list or sequence that holds at least LEAST of its
    parameters, beside those of members within, is gathered by itself, and the rest together.

    All is let go after each forward, the rest too, which torch would keep: between steps every
    parameter is a shard, also of what is locked and has no backward. Locks count from there.
    """
    least = LEAST * sum(p.numel() for p in network.backbone.parameters())
    containers = [
        m for m in network.backbone.modules() if isinstance(m, nn.ModuleList | nn.Sequential)
    ]
    for container in reversed(containers):  # from the inside
        for member in container:
            if isinstance(member, nn.ModuleList | FSDPModule):
                continue  # no forward before which it could be gathered
            left = [p for p in member.parameters() if not isinstance(p, DTensor)]
            if sum(p.numel() for p in left) >= least:
                fully_shard(member, mesh=mesh, reshard_after_forward=True)
    fully_shard(network.backbone, mesh=mesh, reshard_after_forward=True)


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


def check_options(precision: str, clip_algorithm: str | None) -> None:
    """Of the trainer.

    Raises:
        ConfigError: one that would fail in a step, or differ between ranks.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={precision}: under trainer.strategy=fsdp2 expected one of "
            f"{PRECISIONS}"
        )
    if clip_algorithm == "value":
        raise ConfigError(
            "trainer.gradient_clip_algorithm=value: torch does not clip shards and whole gradients "
            "together; under trainer.strategy=fsdp2 expected norm"
        )


def check_optimizer(optimizer: Optimizer) -> None:
    """
    Raises:
        ConfigError: it would treat shards and whole tensors in one call, which torch refuses in the
            first step.
    """
    asked = [name for name in ("foreach", "fused") if optimizer.defaults.get(name)]
    mixed = [
        group for group in optimizer.param_groups if len({type(p) for p in group["params"]}) > 1
    ]
    if asked and mixed:
        raise ConfigError(
            f"model.optimizer: {asked[0]}=True takes the backbone's shards and other parameters in "
            "one call, which torch refuses; give the backbone groups of its own by "
            "model.lr_scale={'backbone': 1.0}, or drop it"
        )
