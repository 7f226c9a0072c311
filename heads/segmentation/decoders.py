"""Every decoder of segmentation-models-pytorch, on any backbone's pyramid.

smp's decoders take "levels": maps of stride 1, 2, 4, ..., of which some may have zero channels.
Shape letters: see `ark.types`; E channels and u x v cells of the decoder's output.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from ark.types import ConfigError, FeatureInfo

from .decoder_adapters import (
    PyramidDeepLabV3,
    PyramidDeepLabV3Plus,
    PyramidDPT,
    PyramidPAN,
    PyramidPSP,
)


@dataclass(frozen=True)
class Decoder:
    """One decoder, made as `cls(encoder_channels, **args)`."""

    cls: type[nn.Module]
    needs: slice  # the levels that must have channels
    defaults: dict[str, Any] = field(default_factory=dict)


COARSEST, FROM_4 = slice(-1, None), slice(2, None)
WIDTHS = {"decoder_channels": (64, 48, 32, 16)}
# Widths that a laptop can train; `decoder_args` sets larger ones. The U-shaped stop at stride 2.
DECODERS = {
    "Unet": Decoder(UnetDecoder, COARSEST, WIDTHS),
    "UnetPlusPlus": Decoder(UnetPlusPlusDecoder, FROM_4, WIDTHS),
    "MAnet": Decoder(MAnetDecoder, COARSEST, WIDTHS),
    "Linknet": Decoder(LinknetDecoder, COARSEST),
    "FPN": Decoder(
        FPNDecoder, slice(-4, None), {"pyramid_channels": 64, "segmentation_channels": 64}
    ),
    "UPerNet": Decoder(UPerNetDecoder, FROM_4, {"decoder_channels": 64}),
    "Segformer": Decoder(SegformerDecoder, FROM_4, {"segmentation_channels": 64}),
    "DPT": Decoder(PyramidDPT, FROM_4, {"fusion_channels": 64}),
    "PAN": Decoder(PyramidPAN, FROM_4, {"decoder_channels": 32}),
    "PSPNet": Decoder(PyramidPSP, COARSEST, {"out_channels": 64}),
    "DeepLabV3": Decoder(PyramidDeepLabV3, COARSEST, {"out_channels": 64}),
    "DeepLabV3Plus": Decoder(PyramidDeepLabV3Plus, slice(2, 3), {"out_channels": 64}),
}


def check_choice(where: str, name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(
            f"{where}: expected {name} to be one of {list(choices)}, but got {value!r}"
        )


def level_channels(info: FeatureInfo, where: str) -> list[int]:
    """Channels of stride 1, 2, 4, ...; 0 where the backbone has no such map.

    Raises:
        ConfigError: the maps are no pyramid.
    """
    strides = info.strides
    regular = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not regular or strides[0] not in (2, 4, 8, 16, 32):
        raise ConfigError(
            f"{where}: the backbone's maps have strides {strides}, but every decoder needs powers "
            "of 2, each twice the one before; choose a backbone with a pyramid, such as "
            "4, 8, 16, 32"
        )
    return [0] * _missing_levels(info) + list(info.channels)


def levels_of(maps: list[Tensor], info: FeatureInfo, size: tuple[int, int]) -> list[Tensor]:
    """The pyramid of H x W pixels as smp's decoders take it: each level twice the next, padded
    right and below to whole cells of the coarsest."""
    stride = info.strides[-1]
    top = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    missing = _missing_levels(info)
    powers = [2**i for i in reversed(range(missing + len(maps)))]
    sizes = [(top[0] * power, top[1] * power) for power in powers]
    batch = maps[0].shape[0]  # len() would fix the batch of an exported graph
    nothing = [maps[0].new_empty(batch, 0, *size) for size in sizes[:missing]]
    return nothing + [_pad(x, size) for x, size in zip(maps, sizes[missing:], strict=True)]


def build_decoder(
    name: str, channels: list[int], given: Mapping[str, Any], norm: str, where: str
) -> nn.Module:
    """A decoder of `DECODERS` for levels of so many `channels`, finest first.

    Args:
        given: arguments over Ark's defaults.
        norm: "group" in place of each BatchNorm, or "batch" as smp has it.

    Raises:
        ConfigError: an argument or these levels do not fit the decoder; says what would.
    """
    known = DECODERS[name]
    parameters = set(inspect.signature(known.cls).parameters)
    for key in given:
        accepted = parameters - {"encoder_channels", "encoder_depth", "n_blocks"}
        check_choice(where, f"each key of decoder_args of {name}", key, sorted(accepted))
    if 0 in channels[known.needs] or not channels[known.needs]:
        fitting = [key for key, d in DECODERS.items() if all(channels[d.needs] or [0])]
        raise ConfigError(
            f"{where}: decoder {name} needs maps that this backbone lacks (channels by stride "
            f"{_by_stride(channels)}); expected one of {fitting}, or another backbone"
        )
    args = known.defaults | dict(given)
    depth = len(channels) - 1
    if "encoder_depth" in parameters:
        args["encoder_depth"] = depth
    if "n_blocks" in parameters:
        args["n_blocks"] = _count_blocks(args, depth, where)
    try:
        decoder = known.cls(channels, **args)
        output_width(decoder, channels)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{where}: decoder {name} does not take {args} on channels by stride "
            f"{_by_stride(channels)}: {error}"
        ) from error
    if norm == "group":
        _use_group_norm(decoder)
    return decoder


@torch.no_grad()
def output_width(decoder: nn.Module, channels: list[int]) -> int:
    """E, found by a trial: smp's decoders do not all tell."""
    sides = [2**i for i in reversed(range(1, len(channels) + 1))]
    levels = [torch.zeros(1, c, side, side) for c, side in zip(channels, sides, strict=True)]
    training = decoder.training
    width = decoder.eval()(levels).shape[1]
    decoder.train(training)
    return width


def _missing_levels(info: FeatureInfo) -> int:
    """How many levels smp expects before the finest map: the image itself, stride 2, ..."""
    return int(math.log2(info.strides[0]))


def _by_stride(channels: list[int]) -> dict[int, int]:
    return {2**n: width for n, width in enumerate(channels) if n}


def _pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros right and below, where a backbone rounded up or down, so that cells stay in place."""
    bottom, right = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def _count_blocks(args: Mapping[str, Any], most: int, where: str) -> int:
    """One block of a U-shaped decoder doubles the resolution once."""
    if "decoder_channels" not in args:
        return most
    widths = args["decoder_channels"]
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= most:
        raise ConfigError(
            f"{where}: expected decoder_args.decoder_channels to list 1 to {most} widths, coarsest "
            f"first, one for each doubling of the resolution, but got {widths!r}"
        )
    return len(widths)


def _use_group_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            width = child.num_features
            # Of a map pooled to one cell a group of one channel would always be 0.
            groups = math.gcd(8, width, max(1, width // 4))
            setattr(module, name, nn.GroupNorm(groups, width))
        else:
            _use_group_norm(child)
