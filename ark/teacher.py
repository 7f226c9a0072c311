"""Teacher: an exponential moving average of the student that cannot be trained by accident."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ark.network import Network


class Teacher(nn.Module):
    """A copy of the whole student, heads included: always in eval mode, never with gradients."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode whatever is asked: a teacher with drop-path active is a fault."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: Network, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, buffers included.

        Integer buffers (BatchNorm's counter) are copied. One fused lerp per dtype and device.
        """
        mine, theirs = self.network.state_dict(), student.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [mine[name] for name in floats], [theirs[name] for name in floats], 1.0 - momentum
        )
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
