"""Classes of an image as the mean over ten crops: Ark's protocol of testing (spec ark.md, test)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import ten_crop

from ark.types import ClassPrediction, ConfigError, Prediction


@torch.no_grad()
def mean_of_ten_crops(
    predict: Callable[[Tensor], Prediction], images: Tensor, size: int
) -> ClassPrediction:
    """The mean of the probabilities in the four corners and the middle of image and mirror image.

    Wrong for classes that name a side of the body: in a mirror image left is right.

    Args:
        predict: crops of all images, (B, C, size, size) -> a ClassPrediction of them; called ten
            times, so that no more memory is needed than for the images as they are.
        images: (B, C, R, R).
        size: side of the crops in pixels, the network's input size.

    Raises:
        ConfigError: the images are smaller than a crop.
    """
    if min(images.shape[-2:]) < size:
        raise ConfigError(
            f"ten crops: images of {tuple(images.shape[-2:])} pixels are smaller than the "
            f"network's input of {size}; resize them to a larger square first"
        )
    total = torch.zeros(())
    for crop in ten_crop(images, [size, size]):
        prediction = predict(crop)
        assert isinstance(prediction, ClassPrediction)
        total = total.to(prediction.probabilities) + prediction.probabilities
    return ClassPrediction((total / 10).clamp(0, 1))  # rounding may carry a mean beyond
