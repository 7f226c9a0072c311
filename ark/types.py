"""The contracts that the core, the heads and the datamodules share.

Shape letters: B images in a batch, K classes, H x W pixels of the network's input,
C channels and h x w cells of a feature map, D width of a pooled vector, N boxes of one image.
Boxes are `xyxy` everywhere inside Ark: (x1, y1, x2, y2) in pixels, origin at the top left corner.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ark.errors import ConfigError as ConfigError  # known to all under this roof
from ark.sharing import SharedParts

Kind = Literal[
    "multilabel", "multiclass", "ordinal", "detection", "segmentation", "values", "points"
]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class TaskSpec:
    """One task of one dataset: what its labels mean and which head learns them.

    `classes` is the only place that gives class names an order; heads, metrics, pictures and
    published files all read it. `head` is plain data, `{"class_path": ..., "init_args": {...}}`,
    so that a checkpoint can carry it. `metric` is the main one in place of the head's, and `scored`
    the classes over which a classification's means go (empty: all), as a benchmark may have it.
    """

    dataset: str
    name: str
    kind: Kind
    classes: tuple[str, ...]
    head: dict[str, Any] = field(default_factory=dict, hash=False)
    metric: str | None = None
    scored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, value in (("dataset", self.dataset), ("task", self.name)):
            if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
                raise ConfigError(
                    f"{what} name {value!r}: use letters, digits, '_' and '-' only; it names "
                    "modules, files and metrics"
                )
        if self.kind not in KINDS:
            raise ConfigError(f"task {self.key}: kind {self.kind!r}; expected one of {KINDS}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ConfigError(
                f"task {self.key}: classes {list(self.classes)}; expected at least one name, "
                "each once"
            )
        self._check_scored()

    def _check_scored(self) -> None:
        if self.scored and self.kind not in ("multilabel", "multiclass", "ordinal"):
            raise ConfigError(f"task {self.key}: scored is of classifications, not of {self.kind}")
        if unknown := [name for name in self.scored if name not in self.classes]:
            raise ConfigError(
                f"task {self.key}: scored {unknown[0]!r} is no class; there are {self.classes}"
            )

    @property
    def key(self) -> str:
        """The name used for the head, in logs and in files: `<dataset>/<task>`."""
        return f"{self.dataset}/{self.name}"


@dataclass(frozen=True)
class FeatureInfo:
    """Widths and strides of what a backbone returns, known before the first image."""

    channels: tuple[int, ...]  # of each map, finest first
    strides: tuple[int, ...]  # input pixels per cell of each map, finest first
    pooled: int  # D of the backbone's pooled vector
    embedding: int  # D after the projector; equal to `pooled` where there is none
    image_size: int  # pixels of a side of the square input
    shared: SharedParts = field(default_factory=SharedParts, compare=False, repr=False)


@dataclass
class Features:
    """What a backbone sees in a batch. A part nobody asked for is None and was not computed."""

    maps: list[Tensor]  # (B, C_l, H / stride_l, W / stride_l), finest first
    pooled: Tensor | None  # (B, D), after the backbone's final norm
    embedding: Tensor | None  # (B, D'), the projector's output
    image_size: tuple[int, int]  # (H, W) of the network's input in pixels
    regions: BoxPrediction | None = None  # of the task that the head names as its guide


class _Movable:
    """Dataclass of tensors (or lists of them) that a loader can pin and a trainer can move."""

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Any:
        def visit(value: Any) -> Any:
            if isinstance(value, Tensor):
                return fn(value)
            if isinstance(value, _Movable):
                return value._map(fn)
            if isinstance(value, list):
                return [visit(item) for item in value]
            return value

        mine = {f.name: visit(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **mine)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Any:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Any:
        return self._map(lambda t: t.pin_memory())

    def item(self, index: int) -> Any:
        """One image's part of a target or prediction, still as a batch (of one)."""

        def visit(value: Any) -> Any:
            return value[index : index + 1] if isinstance(value, Tensor | list) else value

        mine = {f.name: visit(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **mine)  # type: ignore[type-var]


@dataclass
class MultilabelTarget(_Movable):
    """Independent yes/no labels."""

    labels: Tensor  # (B, K) float32 in [0, 1]; 0 where unknown
    known: Tensor  # (B, K) bool; False = nobody labelled this class on this image


@dataclass
class MulticlassTarget(_Movable):
    """Exactly one class an image; kind "ordinal" gives the classes' order a meaning."""

    labels: Tensor  # (B,) int64 index into TaskSpec.classes


@dataclass
class DetectionTarget(_Movable):
    """Boxes in pixels of the network's input (after every geometric transform)."""

    boxes: list[Tensor]  # B times (N, 4) float32 xyxy
    labels: list[Tensor]  # B times (N,) int64 index into TaskSpec.classes
    # (B, K) bool; False = nobody looked for this class on this image; None: all were looked for
    known: Tensor | None = None


@dataclass
class SegmentationTarget(_Movable):
    """One mask a class; masks of different classes may overlap."""

    masks: Tensor  # (B, K, H, W) uint8: how many raters put the pixel into the class
    known: Tensor  # (B, K) bool; False = this class was not annotated on this image
    raters: Tensor | None = None  # (B, K) uint8 >= 1: who read the image; None: one everywhere

    def share(self) -> Tensor:
        """(B, K, H, W) float32 in [0, 1]: the share of the raters; 0 or 1 where there is one."""
        masks = self.masks.float()
        return masks if self.raters is None else masks / self.raters[..., None, None]


@dataclass
class ValuesTarget(_Movable):
    """K numbers an image, such as ages, ratios and volumes; "classes" are their names."""

    values: Tensor  # (B, K) float32, in the dataset's own units; 0 where unknown
    known: Tensor  # (B, K) bool


@dataclass
class PointsTarget(_Movable):
    """K named points (landmarks, keypoints) an image."""

    points: Tensor  # (B, K, 2) float32 x, y in pixels of the network's input; 0 where unknown
    known: Tensor  # (B, K) bool; a point that augmentation moved out of the image is unknown


Target = (
    MultilabelTarget
    | MulticlassTarget
    | DetectionTarget
    | SegmentationTarget
    | ValuesTarget
    | PointsTarget
)


SKIP_REASONS = ("shard", "checksum", "image", "annotation")


@dataclass(frozen=True)
class Skipped:
    """A sample that was to be in a batch and could not be used."""

    position: int  # in the task's stream; in evaluation the sample's number
    reason: str  # of SKIP_REASONS
    message: str  # says which sample, what is wrong with it, and what to do


@dataclass
class Batch(_Movable):
    """Samples of ONE task of ONE dataset. Every rank holds the same task in the same step.

    A concurrent phase trains several: their batches follow in `others`.
    """

    task: str  # TaskSpec.key
    keys: list[str]  # B sample keys, for pictures and reports
    images: Tensor  # (B, 1 or 3, H, W) uint8 0..255: the student's view; 1 where all are gray
    # the teacher's view, of the same shape, and of the same geometry unless the recipe shows it the
    # whole image; None in evaluation
    teacher_images: Tensor | None
    target: Target
    positions: list[int] = field(default_factory=list)  # that this batch answers for, see Skipped
    seeds: list[int] = field(default_factory=list)  # of the samples' augmentation
    skipped: list[Skipped] = field(default_factory=list)
    # In training another sample took the place of a skipped one, so that B stays; in evaluation
    # it is left out, and where nothing is left over `keys` is empty and images, target say nothing.
    # in evaluation: B, whom each image shows; where a dataset does not say so, the sample's key
    patients: list[str] = field(default_factory=list)
    # of a concurrent phase: the batches of its further tasks in the same step
    others: list[Batch] = field(default_factory=list)

    @property
    def parts(self) -> list[Batch]:
        """The batches of all tasks of the step, this one first."""
        return [self, *self.others]


@dataclass
class ClassPrediction(_Movable):
    """Of a multilabel, multiclass or ordinal head."""

    probabilities: Tensor  # (B, K) float in [0, 1]; multiclass and ordinal rows sum to 1


@dataclass
class BoxPrediction(_Movable):
    """Of a detection head; sorted by falling score."""

    boxes: list[Tensor]  # B times (N, 4) float32 xyxy, pixels of the network's input
    scores: list[Tensor]  # B times (N,) in [0, 1]
    labels: list[Tensor]  # B times (N,) int64 index into TaskSpec.classes


@dataclass
class MaskPrediction(_Movable):
    """Of a segmentation head."""

    probabilities: Tensor  # (B, K, H, W) float in [0, 1], at the network's input size
    exclusive: bool = False  # a pixel belongs to one class at most: what is left is background's

    def masks(self, threshold: float = 0.5) -> Tensor:
        """(B, K, H, W) bool: where a class has at least `threshold`; of exclusive classes where
        it is more probable than any other and than the background, whatever the threshold."""
        if not self.exclusive:
            return self.probabilities >= threshold
        background = 1 - self.probabilities.sum(dim=1, keepdim=True)
        best = torch.cat([background, self.probabilities], dim=1).argmax(dim=1)
        count = self.probabilities.shape[1] + 1
        return F.one_hot(best, count)[..., 1:].movedim(-1, 1).bool()


@dataclass
class ValuesPrediction(_Movable):
    """Of a regression head."""

    values: Tensor  # (B, K) float32, in the dataset's own units


@dataclass
class PointsPrediction(_Movable):
    """Of a head of landmarks or keypoints."""

    points: Tensor  # (B, K, 2) float32 x, y in pixels of the network's input
    scores: Tensor  # (B, K) in [0, 1]


Prediction = ClassPrediction | BoxPrediction | MaskPrediction | ValuesPrediction | PointsPrediction
