"""Masks of mode "multiclass": every pixel belongs to one class or to the background.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def without_overlap(share: Tensor) -> Tensor:
    """What several masks claim of a pixel, made to sum to 1 at most; the LAST class wins.

    From the last class to the first, each takes what it claims of what is left. Masks that do not
    overlap stay as they are, and so do raters who disagree: half of them for one class and half
    for another is no overlap.

    Args:
        share: (B, K, H, W) float in [0, 1].
    """
    later = share.flip(1).cumsum(dim=1).flip(1) - share  # what the classes after this one claim
    return torch.minimum(share, (1 - later).clamp(min=0))


def majority(share: Tensor, exclusive: bool = False) -> Tensor:
    """(B, K, H, W) shares of the raters -> bool: at least half of them put the pixel there.

    Args:
        exclusive: of classes that overlap only the last keeps the pixel.
    """
    chosen = share >= 0.5
    if not exclusive:
        return chosen
    later = chosen.flip(1).cumsum(dim=1).flip(1) > chosen
    return chosen & ~later
