"""Masks of an image that is larger than the network's input, from overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ark.types import ConfigError, MaskPrediction, Prediction


@torch.no_grad()
def sliding_window(
    predict: Callable[[Tensor], Prediction],
    image: Tensor,
    tile: int,
    overlap: float = 0.5,
    batch: int = 4,
) -> MaskPrediction:
    """Of the whole image, (B, K, H, W); where tiles overlap their mean, of which a tile's middle
    weighs more than its rim (a Gaussian of sigma tile / 8).

    Args:
        predict: tiles, (n, C, tile, tile) float in 0..1 -> a MaskPrediction of them.
        image: (B, C, H, W), uint8 in 0..255 or float in 0..1; where it is smaller than a tile it
            is padded with black on both sides, and the padding is cut off the result.
        tile: side in pixels, the network's input size.
        overlap: the share of its side that a tile has in common with the next, in [0, 1).
        batch: tiles at a time.

    Raises:
        ConfigError: tile, overlap or batch is out of range.
    """
    from monai.inferers import sliding_window_inference

    if tile < 1 or batch < 1 or not 0 <= overlap < 1:
        raise ConfigError(
            "sliding window: expected tile >= 1, batch >= 1 and overlap in [0, 1), but got "
            f"tile={tile}, batch={batch} and overlap={overlap}"
        )
    if image.dtype == torch.uint8:
        image = image.float() / 255

    exclusive = False

    def probabilities(tiles: Tensor) -> Tensor:
        nonlocal exclusive
        masks = predict(tiles)
        assert isinstance(masks, MaskPrediction)
        exclusive = masks.exclusive
        return masks.probabilities.float()

    masks = sliding_window_inference(
        image.float(),
        tile,
        batch,
        probabilities,
        overlap=overlap,
        mode="gaussian",
    )
    assert isinstance(masks, Tensor)
    return MaskPrediction(masks.clamp(0, 1), exclusive)  # rounding may carry a mean beyond
