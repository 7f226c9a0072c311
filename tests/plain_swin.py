"""A Swin Transformer written down from its paper (arXiv 2103.14030), for comparison.

No windows are cut out: every token attends to every other, and a mask says which of them are in one
window of the (cyclically shifted) grid. Reads the names of the original code and of timm < 0.9.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def plain_swin(
    state: State,
    images: Tensor,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    keep_shift: bool,
) -> tuple[list[Tensor], Tensor]:
    """
    Args:
        images: (B, 3, H, W), normalised.
        keep_shift: shift and mask also where the map is not larger than a window (Foundation X).

    Returns:
        Each stage's map (B, C, h, w) before its patches are merged, and the pooled vector (B, D)
        after the final norm.
    """
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = _norm(x.permute(0, 2, 3, 1), state, "patch_embed.norm")
    maps = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            shift = window // 2 if j % 2 and (keep_shift or x.shape[1] > window) else 0
            x = _block(x, state, f"layers.{i}.blocks.{j}", heads[i], window, shift)
        maps.append(x.permute(0, 3, 1, 2))
        if i < len(depths) - 1:
            corners = [x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)]
            x = _norm(torch.cat(corners, dim=-1), state, f"layers.{i}.downsample.norm")
            x = x @ state[f"layers.{i}.downsample.reduction.weight"].T
    return maps, _norm(x, state, "norm").mean(dim=(1, 2))


def _block(x: Tensor, state: State, name: str, heads: int, window: int, shift: int) -> Tensor:
    x = x + _attention(
        _norm(x, state, f"{name}.norm1"), state, f"{name}.attn", heads, window, shift
    )
    hidden = F.gelu(_linear(_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
    return x + _linear(hidden, state, f"{name}.mlp.fc2")


def _attention(x: Tensor, state: State, name: str, heads: int, window: int, shift: int) -> Tensor:
    batch, height, width, channels = x.shape
    qkv = _linear(x, state, f"{name}.qkv").reshape(batch, height * width, 3, heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (channels // heads) ** 0.5
    scores = scores + _bias(state[f"{name}.relative_position_bias_table"], height, window, shift)
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, height, width, channels)
    return _linear(mixed, state, f"{name}.proj")


def _bias(table: Tensor, side: int, window: int, shift: int) -> Tensor:
    """(heads, tokens, tokens): the relative position's bias, -inf between windows, -100 between
    tokens that only the cyclic shift brought into one window."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = ((a.flatten() - shift) % side for a in (y, x))  # places on the shifted grid
    dy, dx = (a[:, None] - a[None, :] for a in (y, x))
    number = (dy + window - 1) * (2 * window - 1) + dx + window - 1
    bias = table[number.clamp(0, len(table) - 1)].permute(2, 0, 1)
    around = [
        (a >= side - shift) if shift else torch.zeros_like(a, dtype=torch.bool) for a in (y, x)
    ]
    apart = torch.zeros_like(number, dtype=torch.bool)
    for a in around:
        apart |= a[:, None] != a[None, :]
    other = torch.zeros_like(apart)
    for a in (y, x):
        other |= (a // window)[:, None] != (a // window)[None, :]
    return (bias - 100.0 * apart).masked_fill(other, float("-inf"))


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)
