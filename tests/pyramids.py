"""Pyramids of random maps, as a convolutional backbone and a transformer give them."""

from __future__ import annotations

import math

import torch

from ark.types import FeatureInfo, Features, TaskSpec

CONVOLUTIONAL = FeatureInfo((4, 6, 8, 12, 16), (2, 4, 8, 16, 32), 16, 16, image_size=64)
TRANSFORMER = FeatureInfo((6, 8, 12, 16), (4, 8, 16, 32), 16, 16, image_size=64)
TASK = TaskSpec("chestxdet", "masks", "segmentation", ("lung", "heart", "clavicle"))


def make_features(info, size=(64, 64), batch=2, rounding=math.ceil):
    maps = [
        torch.randn(batch, c, *(max(1, rounding(side / s)) for side in size), requires_grad=True)
        for c, s in zip(info.channels, info.strides, strict=True)
    ]
    return Features(maps, None, None, size)
