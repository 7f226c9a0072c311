"""Detection: an FPN and a single-stage mmdet head on the backbone's pyramid.

Shape letters: see `ark.types`; L levels of the pyramid, finest first.
Importing this module is cheap: mmdet is imported when the first head is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ark.drawing import draw_boxes, show_image
from ark.head import Head
from ark.types import (
    BoxPrediction,
    ConfigError,
    DetectionTarget,
    FeatureInfo,
    Features,
    Prediction,
    Target,
    TaskSpec,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mmengine.structures import InstanceData

    from heads.box_ap import BoxAP


@dataclass
class DetectionOutput:
    """What `DetectionHead.forward` computed."""

    maps: tuple[Tensor, ...]  # L times (B, channels, H / stride, W / stride): the neck's
    raw: tuple[list[Tensor], ...]  # per branch (class, box, ...) L maps: the mmdet head's
    image_size: tuple[int, int]  # (H, W) of the network's input in pixels

    @property
    def batch_size(self) -> int:
        return len(self.maps[0])

    def image_metas(self) -> list[dict[str, Any]]:
        """What mmdet wants to know about each image."""
        size = self.image_size
        meta = {"img_shape": size, "pad_shape": size, "batch_input_shape": size}
        return [dict(meta) for _ in range(self.batch_size)]


class DetectionHead(Head):
    """Boxes of a fixed set of classes.

    Args:
        detector: "atss" (learned fastest where it was measured), "fcos" or "retinanet"; or
            `{"neck": ..., "bbox_head": ...}`, mmdet configurations of your own, in which
            `neck.in_channels`, `bbox_head.num_classes` and `bbox_head.test_cfg` are filled in.
        channels: width of the pyramid and of the presets' towers; a multiple of 8.
        convs: stacked convolutions in each of the presets' towers.
        min_stride: maps finer than this many pixels per cell are left out.
        extra_levels: coarser levels on top of the backbone's, each of twice the stride.
        max_boxes: most boxes predicted for one image.
        score_threshold: boxes with a lower class probability are not predicted.
        nms_iou: of two boxes of one class that overlap more, the lower score is dropped.
        display_threshold: boxes with a lower score are not drawn.

    Raises:
        ConfigError: for a value outside these, a configuration that mmdet cannot build, or a
            backbone without a map coarse enough.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"detection"})
    reads: ClassVar[str] = "maps"
    main_metric: ClassVar[str] = "map50"

    neck: Any  # mmdet's modules have no types
    dense: Any

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        detector: str | Mapping[str, Any] = "atss",
        channels: int = 64,
        convs: int = 2,
        min_stride: int = 8,
        extra_levels: int = 1,
        max_boxes: int = 100,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        display_threshold: float = 0.3,
    ) -> None:
        super().__init__(task, features)
        from heads.detector_presets import detector_config, postprocessing

        where = f"head of task {task.key!r}"
        _check_range(where, "convs", convs, 0)
        _check_range(where, "extra_levels", extra_levels, 0)
        _check_range(where, "max_boxes", max_boxes, 1)
        _check_range(where, "score_threshold", score_threshold, 0, 1)
        _check_range(where, "nms_iou", nms_iou, 0, 1)
        self.levels = _levels(features, min_stride, where)
        self.max_boxes = max_boxes
        self.display_threshold = display_threshold
        strides = [features.strides[level] for level in self.levels]
        strides += [strides[-1] * 2**n for n in range(1, extra_levels + 1)]
        neck, dense = detector_config(detector, channels, convs, strides, where)
        neck.setdefault("in_channels", [features.channels[level] for level in self.levels])
        dense["num_classes"] = len(task.classes)
        dense.setdefault("test_cfg", postprocessing(max_boxes, score_threshold, nms_iou))
        self.neck = _build(neck, f"{where}: detector.neck")
        self.dense = _build(dense, f"{where}: detector.bbox_head")

    def forward(self, features: Features, target: Target | None = None) -> DetectionOutput:
        """Reads the maps of stride >= `min_stride`."""
        maps = self.neck(tuple(features.maps[level] for level in self.levels))
        raw = tuple([level.float() for level in branch] for branch in self.dense(maps))
        return DetectionOutput(tuple(maps), raw, features.image_size)

    def loss(self, output: DetectionOutput, target: Target) -> dict[str, Tensor]:
        """mmdet's terms (`loss_cls`, `loss_bbox`, ...), each summed over the levels.

        They are divided by the number of matched cells, averaged over the ranks: under DDP every
        rank must call this in the same step.
        """
        assert isinstance(target, DetectionTarget)
        truth = [_instances(*image) for image in zip(target.boxes, target.labels, strict=True)]
        terms = self.dense.loss_by_feat(
            *output.raw, batch_gt_instances=truth, batch_img_metas=output.image_metas()
        )
        return {name: _total(term) for name, term in terms.items()}

    @torch.no_grad()
    def predict(self, output: DetectionOutput) -> BoxPrediction:
        """At most `max_boxes` boxes an image, inside the image, after NMS within each class."""
        found = self.dense.predict_by_feat(*output.raw, batch_img_metas=output.image_metas())
        return BoxPrediction(
            boxes=[image.bboxes for image in found],
            scores=[image.scores for image in found],
            labels=[image.labels for image in found],
        )

    def consistency(self, features: Features, output: DetectionOutput) -> dict[str, Tensor]:
        """Half backbone, half decoder: the coarsest map, and all cells of the pyramid."""
        cells = torch.cat([level.flatten(2) for level in output.maps], dim=2)
        return {"backbone": features.maps[-1], "decoder": cells}

    def metrics(self) -> BoxAP:
        """Keys `map50`, `map`, `map40` and `ap50/<class>`: see `heads.box_ap.BoxAP`."""
        from heads.box_ap import BoxAP

        return BoxAP(self.task.classes, self.max_boxes)

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """Outlines all boxes of the truth, or the predicted ones above `display_threshold`."""
        assert isinstance(shown, BoxPrediction | DetectionTarget)
        boxes, labels = _numpy(shown.boxes[index]), _numpy(shown.labels[index])
        scores = None
        if isinstance(shown, BoxPrediction):
            scores = _numpy(shown.scores[index])
            visible = scores >= self.display_threshold
            boxes, labels, scores = boxes[visible], labels[visible], scores[visible]
        show_image(axes, _numpy(image).transpose(1, 2, 0))
        draw_boxes(axes, boxes, labels, self.task.classes, scores)


def _check_range(where: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        expected = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ConfigError(f"{where}: {name} is {value}; expected a number {expected}")


def _levels(features: FeatureInfo, min_stride: int, where: str) -> list[int]:
    levels = [n for n, stride in enumerate(features.strides) if stride >= min_stride]
    if not levels:
        raise ConfigError(
            f"{where}: no map of the backbone has a stride >= min_stride={min_stride}; "
            f"its strides are {list(features.strides)}; lower min_stride or take a deeper backbone"
        )
    return levels


def _build(config: dict[str, Any], where: str) -> Any:
    from heads.mmdet_adapter import init_weights, mmdet_models

    models = mmdet_models()
    from mmengine import ConfigDict

    try:
        module = models.build(ConfigDict(config))
    except (KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"{where}: mmdet cannot build {config.get('type')!r}: {error}") from error
    init_weights(module)
    return module


def _instances(boxes: Tensor, labels: Tensor) -> InstanceData:
    """One image's truth for mmdet, without boxes that have no area: they encode to infinity."""
    from mmengine.structures import InstanceData

    solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return InstanceData(bboxes=boxes[solid], labels=labels[solid])


def _total(term: Tensor | list[Tensor]) -> Tensor:
    return torch.stack(term).sum() if isinstance(term, list) else term


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
