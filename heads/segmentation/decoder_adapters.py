"""smp's decoders that want a dilated or a plain encoder, fed with a pyramid instead.

Each is made as `cls(encoder_channels, ...)` and reads "levels": see `heads.segmentation.decoders`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
)
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from torch import Tensor

PAN_CELLS = 16  # PAN halves its coarsest map three times and normalises what is left


class PyramidDeepLabV3(DeepLabV3Decoder):
    """DeepLabV3's decoder wants a dilated encoder, whose last map has `output_stride`. A pyramid's
    coarsest map is resized to that stride instead."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        out_channels: int = 256,
        atrous_rates: Iterable[int] = (12, 24, 36),
        aspp_separable: bool = False,
        aspp_dropout: float = 0.5,
        output_stride: int = 8,
    ) -> None:
        _check_stride(output_stride)
        super().__init__(
            encoder_channels[-1], out_channels, atrous_rates, aspp_separable, aspp_dropout
        )
        self.output_stride = output_stride

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward([_coarsest(features, self.output_stride)])


class PyramidDeepLabV3Plus(DeepLabV3PlusDecoder):
    """See `PyramidDeepLabV3`; the finer map that it reads has stride 4."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_depth: Any = 5,
        out_channels: int = 256,
        atrous_rates: Iterable[int] = (12, 24, 36),
        aspp_separable: bool = True,
        aspp_dropout: float = 0.5,
        output_stride: Any = 16,
    ) -> None:
        _check_stride(output_stride, (8, 16))
        super().__init__(
            encoder_channels=encoder_channels,
            encoder_depth=encoder_depth,
            out_channels=out_channels,
            atrous_rates=atrous_rates,
            output_stride=output_stride,
            aspp_separable=aspp_separable,
            aspp_dropout=aspp_dropout,
        )
        self.output_stride = output_stride

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward([*features[:-1], _coarsest(features, self.output_stride)])


class PyramidPSP(PSPDecoder):
    """smp gives PSPNet an encoder that ends at stride 8; see `PyramidDeepLabV3`."""

    def __init__(
        self,
        encoder_channels: list[int],
        use_norm: Any = "batchnorm",
        out_channels: int = 512,
        dropout: float = 0.2,
        output_stride: int = 8,
    ) -> None:
        _check_stride(output_stride)
        super().__init__(encoder_channels, use_norm, out_channels, dropout)
        self.output_stride = output_stride

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward([_coarsest(features, self.output_stride)])


class PyramidPAN(PANDecoder):
    """PAN halves its coarsest map three times, so that map is resized to stride 16 (as of smp's
    dilated encoder), and a small one to `PAN_CELLS` cells along its shorter side."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_depth: Any = 5,
        decoder_channels: int = 32,
        interpolation_mode: str = "bilinear",
    ) -> None:
        if encoder_depth > 5:
            raise ValueError("it reads no map beyond stride 32")
        super().__init__(encoder_channels, encoder_depth, decoder_channels, interpolation_mode)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = _coarsest(features, 16)
        side = min(x.shape[2:])
        if side < PAN_CELLS:
            size = [math.ceil(cells * PAN_CELLS / side) for cells in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return super().forward([*features[:-1], x])


class PyramidDPT(DPTDecoder):
    """DPT reassembles the tokens of a plain transformer to strides 4, 8, 16, ...; a pyramid has
    these strides already, and no class tokens to read out."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        intermediate_channels: Sequence[int] | None = None,
        fusion_channels: int = 256,
    ) -> None:
        channels = encoder_channels[2:]
        super().__init__(
            encoder_out_channels=channels,
            encoder_output_strides=[2 ** (n + 2) for n in range(len(channels))],
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=intermediate_channels or [fusion_channels] * len(channels),
            fusion_channels=fusion_channels,
        )

    def forward(self, features: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(features[2:], [None] * len(features[2:]))


def _coarsest(levels: list[Tensor], stride: int) -> Tensor:
    """The last level, enlarged to `stride` where its own is larger."""
    factor = 2 ** (len(levels) - 1) // stride
    if factor <= 1:
        return levels[-1]
    return F.interpolate(levels[-1], scale_factor=factor, mode="bilinear", align_corners=False)


def _check_stride(stride: Any, possible: tuple[int, ...] = (4, 8, 16, 32)) -> None:
    if stride not in possible:
        raise ValueError(f"output_stride must be one of {possible}")
