"""Any timm model as a pyramid of feature maps and a pooled vector.

The timm model keeps its own parameter names, so its checkpoints load without a key map.
Shape letters: see `ark.types`.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ark.types import ConfigError, FeatureInfo

PYRAMID_STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """A timm model that returns its stages' maps and its pooled vector.

    Convolutional and hierarchical models give their own stages. A plain vision transformer has
    one stride: four of its blocks, evenly spaced, are resized to strides 4, 8, 16 and 32 (the
    parameter-free form of ViTDet's simple feature pyramid, arXiv 2203.16527). One of fewer
    than five blocks gives some of them twice.

    Args:
        name: a timm model name.
        image_size: side of the square input in pixels.
        args: further keyword arguments of `timm.create_model`, such as drop_path_rate.

    Raises:
        ConfigError: timm has no such model, or the model refuses the image size.
    """

    model: Any  # a timm model; timm has no base class that promises what is called here
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: int, args: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model = _create(name, image_size, dict(args or {}))
        config = self.model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)
        stages = [(s["num_chs"], s["reduction"]) for s in self.model.feature_info]
        self.plain = len({stride for _, stride in stages}) == 1
        if self.plain:
            last = len(stages) - 1
            blocks = [math.ceil(last * (i + 1) / 4) for i in range(4)]
            self.indices = sorted(set(blocks))
            self.levels = [self.indices.index(block) for block in blocks]
            stages = [(stages[0][0], stride) for stride in PYRAMID_STRIDES]
        else:
            self.indices = list(range(len(stages)))
        self.channels = tuple(channels for channels, _ in stages)
        self.strides = tuple(stride for _, stride in stages)
        self.image_size = image_size
        width = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        self.pooled_width: int = width

    def info(self, embedding: int | None = None) -> FeatureInfo:
        width = self.pooled_width
        return FeatureInfo(self.channels, self.strides, width, embedding or width, self.image_size)

    def forward(
        self, images: Tensor, maps: bool = True, pooled: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """Computes what is asked for and no more.

        Args:
            images: (B, 3, H, W), or (B, 1, H, W) gray; uint8 in 0..255 or float in 0..1.
                Normalised here, on the device, so that bytes travel instead of floats, and of a
                gray image one channel.

        Returns:
            maps: (B, C_l, ceil(H / stride_l), ceil(W / stride_l)), finest first; [] if not asked.
            pooled: (B, D) after the model's final norm; None if not asked.
        """
        x = self._normalise(images)
        if not maps:
            return [], self._pool(self.model.forward_features(x)) if pooled else None
        if not pooled:
            stages = self.model.forward_intermediates(
                x, indices=self.indices, intermediates_only=True
            )
            return self._pyramid(stages, images.shape[-2:]), None
        final, stages = self.model.forward_intermediates(x, indices=self.indices)
        return self._pyramid(stages, images.shape[-2:]), self._pool(final)

    def _normalise(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def _pool(self, final: Tensor) -> Tensor:
        return self.model.forward_head(final, pre_logits=True)

    def _pyramid(self, stages: list[Tensor], size: torch.Size) -> list[Tensor]:
        if not self.plain:
            return list(stages)
        return [
            F.interpolate(
                stages[level],
                (math.ceil(size[0] / stride), math.ceil(size[1] / stride)),
                mode="bilinear",
                antialias=True,
            )
            for level, stride in zip(self.levels, self.strides, strict=True)
        ]


def _create(name: str, image_size: int, args: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ConfigError(f"model.backbone.name: timm has no model {name!r}; {hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        args.setdefault("img_size", image_size)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **args)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model.backbone: timm cannot make {name!r} for image_size={image_size} "
            f"with args {args}: {error}"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(
            f"model.backbone.name: {name!r} gives no feature maps (timm's forward_intermediates); "
            "choose another model"
        )
    return model
