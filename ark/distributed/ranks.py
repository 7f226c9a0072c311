"""Sums and means over the ranks of a distributed run; alone, what a rank has itself.

DDP averages the ranks' gradients. That is the gradient of the whole batch if each rank divides its
sum by the MEAN count of all ranks, not by its own: ranks see unlike numbers of boxes and labels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def several() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first() -> bool:
    return not several() or dist.get_rank() == 0


def sharded(module: nn.Module) -> bool:
    """Whether FSDP2 shards it: then all ranks must run it together."""
    return hasattr(module, "unshard")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 shards; any other as it is. Without a gradient what
    is written into it is written into the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 shards: every rank must ask for it. Any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def mean(value: Tensor) -> Tensor:
    """The mean over ranks, of any shape, without a gradient. Nothing waits for a device."""
    if not several():
        return value
    total = value.clone() if value.is_floating_point() else value.float()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_numbers(mine: dict[str, float]) -> dict[str, float]:
    """The mean over ranks of each number; a rank that lacks one counts as 0."""
    if not several():
        return mine
    found: list[dict[str, float]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    names = dict.fromkeys(name for numbers in found for name in numbers)
    return {n: sum(numbers.get(n, 0.0) for numbers in found) / len(found) for n in names}


def total(value: Tensor) -> Tensor:
    """The sum over ranks, of any shape, for losses that are no sum over images (Dice).

    Its gradient reaches this rank's part alone, times the number of ranks: DDP's mean over ranks is
    then that of the sum. (torch's own all-reduce with a gradient would send in the backward, among
    DDP's buckets, in an order that ranks with unlike graphs need not share.)
    """
    if not several():
        return value
    whole = value.detach().clone()
    dist.all_reduce(whole)
    return whole + dist.get_world_size() * (value - value.detach())


def share(count: int, device: torch.device) -> Tensor | float:
    """What a mean over this rank's `count` images counts: 1 where all ranks have as many."""
    if not several():
        return 1.0
    mine = torch.full((), float(count), device=device)
    return mine / mean(mine)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Makes the running statistics of every BatchNorm in training mode the mean over ranks.

    Each rank sees its own part of a batch. So student and teacher are the same on all ranks, and a
    checkpoint, which rank 0 writes, is what every rank has.
    """
    if not several():
        return
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in module.modules() if isinstance(m, kind) and m.training]
    statistics = [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]
    if not statistics:
        return
    means = mean(torch.cat([s.flatten() for s in statistics]))
    for s, part in zip(statistics, means.split([s.numel() for s in statistics]), strict=True):
        s.copy_(part.view_as(s))
