"""Segmentation: K binary masks, which may overlap, from a decoder of segmentation-models-pytorch.

Shape letters: see `ark.types`; E channels and u x v cells of the decoder's output.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from segmentation_models_pytorch.losses import MULTILABEL_MODE, DiceLoss
from torch import Tensor, nn

from ark.drawing import draw_masks, show_image
from ark.head import Head
from ark.types import (
    ConfigError,
    FeatureInfo,
    Features,
    MaskPrediction,
    Prediction,
    SegmentationTarget,
    Target,
    TaskSpec,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

NOT_ANNOTATED = 255


@dataclass(frozen=True)
class Decoder:
    """A decoder of smp. It takes maps of stride 1, 2, 4, ...; a level may have zero channels."""

    cls: type[nn.Module]
    needs: slice  # the levels that must have channels
    defaults: dict[str, Any] = field(default_factory=dict)


# Widths that a laptop can train; `decoder_args` sets larger ones. The U-shaped stop at stride 2.
DECODERS = {
    "Unet": Decoder(UnetDecoder, slice(-1, None), {"decoder_channels": (64, 48, 32, 16)}),
    "UnetPlusPlus": Decoder(
        UnetPlusPlusDecoder, slice(-1, None), {"decoder_channels": (64, 48, 32, 16)}
    ),
    "FPN": Decoder(
        FPNDecoder, slice(-4, None), {"pyramid_channels": 64, "segmentation_channels": 64}
    ),
    "UPerNet": Decoder(UPerNetDecoder, slice(2, None), {"decoder_channels": 64}),
}


@dataclass
class SegmentationOutput:
    logits: Tensor  # (B, K, H, W)
    decoded: Tensor  # (B, E, u, v), what the last convolution reads


class SegmentationHead(Head):
    """A decoder over the backbone's pyramid and one 3x3 convolution to K masks.

    Args:
        decoder: a key of `DECODERS`.
        decoder_args: arguments of that decoder's class in smp, over Ark's defaults.
        norm: "group" normalises alike in training (student) and evaluation (teacher), and a batch
            of one; "batch" keeps smp's BatchNorm and needs more than one image.
        dice_weight, bce_weight: factors of the two loss terms; a term of weight 0 is not computed.

    Raises:
        ConfigError: an argument is not accepted, or the backbone's maps do not fit the decoder.
    """

    kinds = frozenset({"segmentation"})
    main_metric = "dice"

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        decoder: str = "FPN",
        decoder_args: Mapping[str, Any] | None = None,
        norm: str = "group",
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
    ) -> None:
        super().__init__(task, features)
        where = f"head of task {task.key}"
        _check_choice(where, "decoder", decoder, DECODERS)
        _check_choice(where, "norm", norm, ("group", "batch"))
        if min(dice_weight, bce_weight) < 0 or dice_weight + bce_weight == 0:
            raise ConfigError(
                f"{where}: expected dice_weight and bce_weight >= 0 and one of them > 0, "
                f"but got {dice_weight!r} and {bce_weight!r}"
            )
        self.dice_weight, self.bce_weight = dice_weight, bce_weight
        channels = _level_channels(features, where)
        self.decoder = _build_decoder(decoder, channels, dict(decoder_args or {}), where)
        if norm == "group":
            _use_group_norm(self.decoder)
        width = _output_width(self.decoder, channels)
        self.classifier = nn.Conv2d(width, len(task.classes), kernel_size=3, padding=1)
        self._dice = DiceLoss(MULTILABEL_MODE, ignore_index=NOT_ANNOTATED)

    def forward(self, features: Features, target: Target | None = None) -> SegmentationOutput:
        """H and W need not divide by the strides: maps are padded right and below, masks cut."""
        height, width = features.image_size
        stride = self.info.strides[-1]
        top = math.ceil(height / stride), math.ceil(width / stride)
        decoded = self.decoder(_levels(features.maps, self.info, top))
        size = top[0] * stride, top[1] * stride
        logits = F.interpolate(self.classifier(decoded), size, mode="bilinear", align_corners=False)
        return SegmentationOutput(logits[..., :height, :width], decoded)

    def loss(self, output: SegmentationOutput, target: Target) -> dict[str, Tensor]:
        """{"dice": soft Dice over the batch, mean of the known classes; "bce": mean of the known
        pixels}. A class that was not annotated on an image counts in neither."""
        assert isinstance(target, SegmentationTarget)
        logits, known = output.logits.float(), target.known
        terms = {}
        if self.dice_weight:
            truth = target.masks.masked_fill(~known[..., None, None], NOT_ANNOTATED)
            # smp divides by K; a class unknown in the whole batch adds zero and must not dilute.
            share = known.any(dim=0).float().mean().clamp(min=1 / known.shape[1])
            terms["dice"] = self.dice_weight * self._dice(logits, truth) / share
        if self.bce_weight:
            truth = target.masks.to(logits.dtype)
            each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            total = (each.mean(dim=(2, 3)) * known).sum()
            terms["bce"] = self.bce_weight * total / known.sum().clamp(min=1)
        return terms

    def predict(self, output: SegmentationOutput) -> MaskPrediction:
        """Sigmoid of the logits, (B, K, H, W)."""
        return MaskPrediction(output.logits.float().sigmoid())

    def consistency(self, features: Features, output: SegmentationOutput) -> dict[str, Tensor]:
        """The coarsest map and the decoder's output, each cell's vector of length 1."""
        return {
            "backbone": F.normalize(features.maps[-1], dim=1),
            "decoder": F.normalize(output.decoded, dim=1),
        }

    def metrics(self) -> Metric:
        """Dice and IoU at 0.5: see `heads.metrics.MaskMetric`."""
        from heads.metrics import MaskMetric

        return MaskMetric(self.task.classes)

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """The masks, at 0.5, over the image."""
        assert isinstance(shown, SegmentationTarget | MaskPrediction)
        masks = shown.masks if isinstance(shown, SegmentationTarget) else shown.probabilities
        show_image(axes, image.permute(1, 2, 0).cpu().numpy())
        draw_masks(axes, masks[index].cpu().numpy(), self.task.classes)


def _check_choice(where: str, name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(
            f"{where}: expected {name} to be one of {list(choices)}, but got {value!r}"
        )


def _missing_levels(info: FeatureInfo) -> int:
    """How many levels smp expects before the finest map: the image itself, stride 2, ..."""
    return max(1, int(math.log2(info.strides[0])))


def _level_channels(info: FeatureInfo, where: str) -> list[int]:
    strides = info.strides
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ConfigError(
            f"{where}: the backbone's maps have strides {strides}, but every decoder needs each "
            "to be twice the one before; choose a backbone with a pyramid, such as 4, 8, 16, 32"
        )
    return [0] * _missing_levels(info) + list(info.channels)


def _levels(maps: list[Tensor], info: FeatureInfo, top: tuple[int, int]) -> list[Tensor]:
    """The pyramid as smp's decoders take it: from the image's level on, each twice the next."""
    missing = _missing_levels(info)
    powers = [2**i for i in reversed(range(missing + len(maps)))]
    sizes = [(top[0] * power, top[1] * power) for power in powers]
    nothing = [maps[0].new_empty(len(maps[0]), 0, *size) for size in sizes[:missing]]
    return nothing + [_pad(x, size) for x, size in zip(maps, sizes[missing:], strict=True)]


def _pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros right and below, where a backbone rounded up or down, so that cells stay in place."""
    bottom, right = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def _build_decoder(name: str, channels: list[int], given: dict[str, Any], where: str) -> nn.Module:
    """An smp decoder for levels of so many `channels`, finest first."""
    known = DECODERS[name]
    parameters = set(inspect.signature(known.cls).parameters)
    accepted = parameters - {"encoder_channels", "encoder_depth", "n_blocks"}
    for key in given:
        _check_choice(where, "each key of decoder_args", key, sorted(accepted))
    if 0 in channels[known.needs]:
        raise ConfigError(
            f"{where}: decoder {name} needs maps that this backbone lacks (channels by level "
            f"{channels[1:]}, 0 = none); choose decoder Unet or another backbone"
        )
    args = known.defaults | given
    if "n_blocks" in parameters:
        args["n_blocks"] = _count_blocks(args["decoder_channels"], len(channels) - 1, where)
    try:
        return known.cls(channels, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: decoder {name} does not take {args}: {error}") from error


def _count_blocks(widths: Any, most: int, where: str) -> int:
    """One block of a U-shaped decoder doubles the resolution once."""
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= most:
        raise ConfigError(
            f"{where}: expected decoder_args.decoder_channels to list 1 to {most} widths, coarsest "
            f"first, one for each doubling of the resolution, but got {widths!r}"
        )
    return len(widths)


def _use_group_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = math.gcd(8, child.num_features)
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _use_group_norm(child)


@torch.no_grad()
def _output_width(decoder: nn.Module, channels: list[int]) -> int:
    """E, found by a trial: smp's decoders do not all tell."""
    sides = [2**i for i in reversed(range(1, len(channels) + 1))]
    levels = [torch.zeros(1, c, side, side) for c, side in zip(channels, sides, strict=True)]
    width = decoder.eval()(levels).shape[1]
    decoder.train()
    return width
