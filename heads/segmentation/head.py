"""Segmentation: K masks, overlapping or exclusive, from a decoder of segmentation-models-pytorch.

Shape letters: see `ark.types`; E channels and u x v cells of the decoder's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ark.class_rows import ClassRows
from ark.drawing import draw_masks, show_image
from ark.head import Comparable, Head
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

from .decoders import (
    DECODERS,
    build_decoder,
    check_choice,
    level_channels,
    levels_of,
    output_width,
)
from .exclusive import without_overlap
from .losses import MaskLoss
from .regions import align

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

MODES = ("multilabel", "multiclass", "binary")


@dataclass
class SegmentationOutput:
    logits: Tensor  # (B, K, H, W); mode multiclass: (B, 1 + K, H, W), the background first
    decoded: Tensor  # (B, E, u, v), what the last convolution reads


class SegmentationHead(Head):
    """A decoder over the backbone's pyramid and one 3x3 convolution to K masks.

    Args:
        decoder: a key of `heads.segmentation.decoders.DECODERS`.
        decoder_args: arguments of that decoder's class in smp, over Ark's defaults. Of DeepLabV3,
            DeepLabV3Plus and PSPNet also output_stride, to which the coarsest map is enlarged.
        norm: "group" normalises alike in training (student) and evaluation (teacher), and a batch
            of one; "batch" keeps smp's BatchNorm, and some decoders then refuse a batch of one.
        shared: a name; the segmentation tasks that give the same one have ONE decoder, and each
            its own last convolution. A lock names the decoder `shared.NAME`.
        mode: "multilabel": masks may overlap; "binary": the same of one class; "multiclass": each
            pixel belongs to one class or to the background. In the last, of masks that overlap
            the last class wins (`heads.segmentation.exclusive`).
        losses: weights of the loss terms, by default {dice: 1, bce: 1}, in mode multiclass
            {dice: 1, ce: 1}; see `heads.segmentation.losses.MaskLoss`.
        loss_args: arguments of terms, such as {focal: {gamma: 3}}.
        guide: the detection task of the same dataset whose boxes tell where to look: region-guided
            alignment, see `heads.segmentation.regions`.
        guide_score: of the guide's boxes those of a higher score count.

    Raises:
        ConfigError: an argument is not accepted, or the backbone's maps do not fit the decoder.
    """

    kinds = frozenset({"segmentation"})
    compared = ("backbone", "decoder")
    main_metric = "dice"

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        decoder: str = "FPN",
        decoder_args: Mapping[str, Any] | None = None,
        norm: str = "group",
        shared: str | None = None,
        mode: str = "multilabel",
        losses: Mapping[str, float] | None = None,
        loss_args: Mapping[str, Mapping[str, float]] | None = None,
        guide: str | None = None,
        guide_score: float = 0.3,
    ) -> None:
        super().__init__(task, features)
        where = f"head of task {task.key}"
        check_choice(where, "decoder", decoder, DECODERS)
        check_choice(where, "norm", norm, ("group", "batch"))
        _check_mode(where, mode, task.classes)
        if not 0 <= guide_score < 1:
            raise ConfigError(f"{where}: expected guide_score in [0, 1), but got {guide_score!r}")
        self.exclusive = mode == "multiclass"
        self.loss_terms = MaskLoss(losses, loss_args, self.exclusive, where)
        self.guide, self.guide_score = guide, guide_score
        self._where, self._share_name = where, shared
        channels = level_channels(features, where)
        self._make_decoder(decoder, dict(decoder_args or {}), norm, channels)
        width = output_width(self._decoder(), channels)
        outputs = len(task.classes) + self.exclusive
        self.classifier = nn.Conv2d(width, outputs, kernel_size=3, padding=1)

    def forward(
        self, features: Features, target: Target | None = None, like: Any | None = None
    ) -> SegmentationOutput:
        """H and W need not divide by the strides: maps are padded right and below, masks cut."""
        height, width = features.image_size
        levels = levels_of(self._guided(features), self.info, features.image_size)
        try:
            decoded = self._decoder()(levels)
        except ValueError as error:
            raise ConfigError(
                f"{self._where}: the decoder refuses a batch of {len(levels[0])}: {error}; with "
                "norm: batch some decoders need more than one image; set norm: group or a larger "
                "batch"
            ) from error
        size = levels[0].shape[2:]
        logits = F.interpolate(self.classifier(decoded), size, mode="bilinear", align_corners=False)
        return SegmentationOutput(logits[..., :height, :width], decoded)

    def loss(self, output: SegmentationOutput, target: Target) -> dict[str, Tensor]:
        """The terms of `losses`, each times its weight. A class that was not annotated on an
        image counts in none of them."""
        assert isinstance(target, SegmentationTarget)
        return self.loss_terms(output.logits, target)

    def predict(self, output: SegmentationOutput) -> MaskPrediction:
        """Sigmoid of the logits, or their softmax without the background: (B, K, H, W)."""
        logits = output.logits.float()
        if self.exclusive:
            return MaskPrediction(logits.softmax(dim=1)[:, 1:], exclusive=True)
        return MaskPrediction(logits.sigmoid())

    def graph_facts(self) -> dict[str, Any]:
        """Whether a pixel belongs to one class at most."""
        return {"exclusive": self.exclusive}

    def comparable(self) -> dict[str, Comparable]:
        """Of maps and of the decoder's output each cell's vector has length 1 (spec
        foundation_x.md, Teacher, S)."""
        return {
            "backbone": lambda features, _: F.normalize(features.maps[-1], dim=1),
            "pyramid": lambda features, _: [F.normalize(level, dim=1) for level in features.maps],
            "decoder": lambda _, output: F.normalize(output.decoded, dim=1),
            "logits": lambda _, output: output.logits,
        }

    def class_rows(self) -> dict[str, ClassRows]:
        """The last convolution's; where classes exclude each other the background comes first."""
        layout = ClassRows(before=int(self.exclusive))
        return {"classifier.weight": layout, "classifier.bias": layout}

    def metrics(self, task: TaskSpec | None = None) -> Metric:
        """Dice, IoU and the boundaries' distance: see `heads.segmentation.metric.MaskMetric`."""
        from .metric import MaskMetric

        return MaskMetric((task or self.task).classes, exclusive=self.exclusive)

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """Masks over the image: a prediction's at 0.5 (or the most probable class) in solid
        lines, the truth in broken ones, tinted by the share of the raters."""
        assert isinstance(shown, SegmentationTarget | MaskPrediction)
        missing: list[str] = []
        if isinstance(shown, SegmentationTarget):
            known = shown.known[index]
            masks = shown.share()[index : index + 1] * known[:, None, None]
            masks = without_overlap(masks) if self.exclusive else masks
            missing = [n for n, k in zip(self.task.classes, known.tolist(), strict=True) if not k]
        else:
            masks = shown.masks()[index : index + 1].float()
        title = f"not annotated: {', '.join(missing)}" if missing else ""
        show_image(axes, image.permute(1, 2, 0).cpu().numpy(), title)
        draw_masks(axes, masks[0].cpu().numpy(), self.task.classes, broken=truth)

    def _make_decoder(
        self, name: str, given: dict[str, Any], norm: str, channels: list[int]
    ) -> None:
        def make() -> nn.Module:
            return build_decoder(name, channels, given, norm, self._where)

        if self._share_name is None:
            self.decoder = make()
        else:
            recipe = {"decoder": name, "decoder_args": given, "norm": norm}
            self.share(self._share_name, recipe, make)

    def _decoder(self) -> nn.Module:
        return self.decoder if self._share_name is None else self.shared(self._share_name)

    def _guided(self, features: Features) -> list[Tensor]:
        if self.guide is None:
            return features.maps
        if features.regions is None:
            raise ValueError(
                f"{self._where} reads the boxes of {self.guide!r}, but features.regions is None; "
                "call it through ark.network.Network, which fills them"
            )
        return align(
            features.maps,
            features.regions,
            features.image_size,
            self.info.strides,
            self.guide_score,
        )


def _check_mode(where: str, mode: str, classes: tuple[str, ...]) -> None:
    check_choice(where, "mode", mode, MODES)
    if mode == "binary" and len(classes) != 1:
        raise ConfigError(
            f"{where}: mode binary expects one class, but the task has {list(classes)}; choose "
            "multilabel (masks may overlap) or multiclass (they may not)"
        )
