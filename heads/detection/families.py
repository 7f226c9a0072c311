"""How detectors of a kind are run: what touches weights first, then losses or boxes.

mmdet computes predictions inside its losses; Ark wants both apart. A family is stateless: the
detector, an mmdet module without backbone and neck, comes with every call.

Shape letters: see `ark.types`; L levels of the pyramid, finest first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ark.distributed import ranks
from ark.head import Comparable
from ark.types import DetectionTarget, Features

from .annotated_classes import (
    cannot_leave_out,
    silence_maps,
    silenced_rois,
    unknown_classes,
    usable,
)

Maps = tuple[Tensor, ...]  # L times (B, channels, H / stride, W / stride): the neck's


@dataclass
class Scene:
    """A batch as mmdet wants to know it."""

    samples: list[Any]  # B DetDataSample; with `gt_instances` where there is a target
    unknown: Tensor | None  # (B, K) bool, see heads.detection.annotated_classes.unknown_classes
    taught: bool  # whether there is a target

    @property
    def metas(self) -> list[dict[str, Any]]:
        return [sample.metainfo for sample in self.samples]

    @property
    def truth(self) -> list[Any]:
        return [sample.gt_instances for sample in self.samples]


def make_scene(batch: int, size: tuple[int, int], target: DetectionTarget | None) -> Scene:
    """Args: `size` is (H, W) of the network's input in pixels."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    shapes = ("img_shape", "pad_shape", "batch_input_shape", "ori_shape")
    meta = {**dict.fromkeys(shapes, size), "scale_factor": (1.0, 1.0)}
    samples = [DetDataSample(metainfo=dict(meta)) for _ in range(batch)]
    if target is None:
        return Scene(samples, None, False)
    for sample, (boxes, labels) in zip(samples, usable(target, size), strict=True):
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return Scene(samples, unknown_classes(target), True)


class Family(ABC):
    """Runs the detectors of one kind.

    Class attributes:
        compared: see `ark.head.Head.compared`.
    """

    compared: tuple[str, ...] = ("backbone", "decoder")

    @abstractmethod
    def forward(self, detector: Any, maps: Maps, scene: Scene, like: Any | None) -> Any:
        """Everything that touches weights; losses can follow where the scene is taught.

        Args:
            like: this method's result for the student, where the teacher is run.
        """

    @abstractmethod
    def loss(self, detector: Any, raw: Any, scene: Scene) -> dict[str, Any]:
        """mmdet's loss terms, each a tensor or a list of them."""

    @abstractmethod
    def predict(self, detector: Any, raw: Any, scene: Scene) -> list[Any]:
        """B mmengine InstanceData with `bboxes`, `scores` and `labels`."""

    def comparable(self, detector: Any) -> dict[str, Comparable]:
        """What `DetectionHead.comparable` offers beside the backbone's maps and the neck's cells,
        or in their place."""
        return {}


class Dense(Family):
    """Single-stage detectors. Raw: per branch (class, box, ...) the head's L maps."""

    def forward(self, detector: Any, maps: Maps, scene: Scene, like: Any | None) -> Any:
        with asked_for_losses(detector, scene.taught):
            branches = detector.bbox_head(maps)
        return tuple([level.float() for level in branch] for branch in branches)

    def loss(self, detector: Any, raw: Any, scene: Scene) -> dict[str, Any]:
        head = detector.bbox_head
        classes = silence_maps(head, raw[0], scene.unknown)
        with _counting_all_ranks(head):
            return head.loss_by_feat(
                classes, *raw[1:], batch_gt_instances=scene.truth, batch_img_metas=scene.metas
            )

    def predict(self, detector: Any, raw: Any, scene: Scene) -> list[Any]:
        return detector.bbox_head.predict_by_feat(*raw, batch_img_metas=scene.metas, rescale=False)

    def comparable(self, detector: Any) -> dict[str, Comparable]:
        """Of every anchor in every cell "logits": (B, C, anchors and cells of all levels). Not of
        heads that give probabilities (TOOD) or have other anchors on each level (SSD)."""
        head = detector.bbox_head
        channels = getattr(head, "cls_out_channels", 0)
        anchors = getattr(head, "num_base_priors", 1)
        probabilities = getattr(getattr(head, "loss_cls", None), "activated", False)
        if not channels or not isinstance(anchors, int) or probabilities:
            return {}

        def logits(features: Features, output: Any) -> Tensor:
            levels = [level.unflatten(1, (anchors, channels)) for level in output.raw[0]]
            return torch.cat([level.transpose(1, 2).flatten(2) for level in levels], dim=2)

        return {"logits": logits}


@contextmanager
def _counting_all_ranks(head: Any) -> Iterator[None]:
    """Inside, anchor heads such as RetinaNet's divide by the mean count of boxes of all ranks (see
    `ark.distributed.ranks`). mmdet's newer heads (ATSS, FCOS, DETR) do so themselves."""
    from mmdet.models.dense_heads import AnchorHead

    if getattr(type(head), "loss_by_feat", None) is not AnchorHead.loss_by_feat:
        yield
        return
    own = head.get_targets

    def get_targets(*args: Any, **options: Any) -> Any:
        *targets, count = own(*args, **options)
        return *targets, ranks.mean(torch.tensor(float(count), device=targets[0][0].device))

    head.get_targets = get_targets
    try:
        yield
    finally:
        del head.get_targets


@dataclass
class Whole:
    """What mmdet made of a batch in one go: either losses or boxes."""

    losses: dict[str, Any] | None
    boxes: list[Any] | None


class TwoStage(Family):
    """Detectors that cut regions out of the maps and classify these; losses and boxes are
    computed in the forward pass.

    Of an image with some classes unknown the second stage leaves these out of its softmax; the
    first stage, which only tells boxes from no boxes, learns from it as from any other image. An
    image without a known class is left out of both.
    """

    def forward(self, detector: Any, maps: Maps, scene: Scene, like: Any | None) -> Whole:
        if not scene.taught:
            return Whole(None, None if like is not None else _boxes(detector, maps, scene))
        return Whole(self._losses(detector, maps, scene), None)

    def loss(self, detector: Any, raw: Whole, scene: Scene) -> dict[str, Any]:
        if raw.losses is None:
            raise RuntimeError("the losses of an output that forward made without its target")
        return raw.losses

    def predict(self, detector: Any, raw: Whole, scene: Scene) -> list[Any]:
        if raw.boxes is None:
            raise RuntimeError("the boxes of an output that forward made with a target")
        return raw.boxes

    def _losses(self, detector: Any, maps: Maps, scene: Scene) -> dict[str, Any]:
        unknown, samples = scene.unknown, scene.samples
        if unknown is not None:
            use = (~unknown).any(dim=1).nonzero().flatten().tolist()
            if not use:
                return {"loss_cls": sum(level.sum() for level in maps) * 0}
            maps = tuple(level[use] for level in maps)
            samples, unknown = [samples[n] for n in use], unknown[use]
        silenced = nullcontext() if unknown is None else silenced_rois(detector.roi_head, unknown)
        with asked_for_losses(detector, True), silenced:
            return detector.loss(maps, samples)


class Other(TwoStage):
    """Any other detector of mmdet; every class must have been looked for on every image."""

    def _losses(self, detector: Any, maps: Maps, scene: Scene) -> dict[str, Any]:
        if scene.unknown is not None:
            raise cannot_leave_out(type(detector).__name__)
        with asked_for_losses(detector, True):
            return detector.loss(maps, scene.samples)


def _boxes(detector: Any, maps: Maps, scene: Scene) -> list[Any]:
    with asked_for_losses(detector, False), torch.no_grad():
        found = detector.predict(maps, scene.samples, rescale=False)
    return [sample.pred_instances for sample in found]


@contextmanager
def asked_for_losses(detector: Any, wanted: bool) -> Iterator[None]:
    """Inside, mmdet's own modules take `wanted` for their mode.

    They ask `training` whether losses will follow, which a locked head, in eval mode, must be able
    to give. torch's and mmcv's modules (dropout, BatchNorm) keep their mode.
    """
    modes = [
        (module, module.training)
        for module in _reachable(detector)
        if type(module).__module__.startswith(("mmdet.", "heads."))
    ]
    for module, _ in modes:
        module.training = wanted
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _reachable(detector: Any) -> list[Any]:
    """The detector's modules, those that it borrows included."""
    lent = [value for value in vars(detector).values() if isinstance(value, torch.nn.Module)]
    return [module for root in [detector, *lent] for module in root.modules()]


def family_of(detector: Any) -> Family:
    """The family that a detector belongs to."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import (
        DINO,
        DeformableDETR,
        SingleStageDetector,
        TwoStageDetector,
    )

    from .detr import Deformable, Dino

    if _inherits(detector, DINO, "pre_decoder", "loss"):
        return Dino()
    if _inherits(detector, DeformableDETR, "pre_decoder", "loss"):
        return Deformable()
    if _inherits(detector, SingleStageDetector, "loss", "predict") and _inherits(
        detector.bbox_head, BaseDenseHead, "loss", "predict"
    ):
        return Dense()
    if _inherits(detector, TwoStageDetector, "loss", "predict") and detector.with_roi_head:
        return TwoStage()
    return Other()


def says_yes_or_no(detector: Any) -> bool:
    """Whether each class logit goes through a sigmoid of its own, as of most single-stage detectors
    and transformers."""
    loss = getattr(getattr(detector, "bbox_head", None), "loss_cls", None)
    return getattr(loss, "use_sigmoid", True)


def _inherits(module: Any, base: type, *methods: str) -> bool:
    """Whether `module` is of that class and uses its methods unchanged."""
    return isinstance(module, base) and all(
        getattr(type(module), name) is getattr(base, name) for name in methods
    )
