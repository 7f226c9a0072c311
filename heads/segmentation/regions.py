"""Region-guided alignment of Foundation X+: features fade away from what a detector found.

Spec `foundation_x.md`, Network: boxes over a score, enlarged to 1.5 times their area, make a mask M
that is 1 inside and decays as a Gaussian of the distance outside; the maximum over the boxes; each
map F becomes F / 2 + F * M / 2. Two things that the spec leaves open: the decay's width is measured
on the ENLARGED box, and an image without such a box keeps its features (M = 1), for "nothing was
found" says nothing about where to look.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ark.types import BoxPrediction

AREA = 1.5  # of the enlarged box, in areas of the box
REACH = 1.5  # sigma of the decay, in longer sides of the enlarged box; at most the image's side


def align(
    maps: list[Tensor],
    regions: BoxPrediction,
    image_size: tuple[int, int],
    strides: Sequence[int],
    least_score: float,
) -> list[Tensor]:
    """The maps, (B, C_l, h_l, w_l), faded outside the regions. No gradient reaches the boxes.

    Args:
        image_size: (H, W) of the network's input in pixels.
        strides: pixels per cell of each map; a cell lies where its centre lies.
        least_score: boxes of a higher score count.
    """
    chosen = [
        boxes.detach()[scores > least_score]
        for boxes, scores in zip(regions.boxes, regions.scores, strict=True)
    ]
    return [
        x * (0.5 + 0.5 * _masks(chosen, image_size, x, stride)).to(x.dtype)
        for x, stride in zip(maps, strides, strict=True)
    ]


def _masks(chosen: list[Tensor], image_size: tuple[int, int], x: Tensor, stride: int) -> Tensor:
    """M of each image, (B, 1, h, w) float32."""
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) + 0.5) * stride
    columns = (torch.arange(width, device=x.device) + 0.5) * stride
    each = [
        region_mask(boxes.to(x.device), image_size, rows, columns)
        if len(boxes)
        else torch.ones(height, width, device=x.device)
        for boxes in chosen
    ]
    return torch.stack(each)[:, None]


def region_mask(
    boxes: Tensor, image_size: tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """M at the points (rows, columns), in pixels, of N >= 1 boxes: (h, w)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * AREA**0.5
    longer = 2 * half.amax(dim=1)
    sigma = (REACH * longer).clamp(min=1.0, max=float(min(image_size)))[:, None]
    away_x = ((columns - centres[:, :1]).abs() - half[:, :1]).clamp(min=0)
    away_y = ((rows - centres[:, 1:]).abs() - half[:, 1:]).clamp(min=0)
    # The Gaussian of the Euclidean distance to the box is the product of those along the axes.
    fade_x = torch.exp(-(away_x**2) / (2 * sigma**2))
    fade_y = torch.exp(-(away_y**2) / (2 * sigma**2))
    return (fade_y[:, :, None] * fade_x[:, None, :]).amax(dim=0)
