"""Detection: a detector of mmdet on the backbone's pyramid.

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

from ark.class_rows import ClassRows
from ark.drawing import draw_boxes, show_image
from ark.head import Comparable, Head
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

from .tied import TiedOnce

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .box_ap import BoxAP

# by class, for readers of gray prints: matplotlib's (offset, (on, off, ...)) in line widths
LINES = ((0, ()), (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@dataclass
class DetectionOutput:
    """What `DetectionHead.forward` computed."""

    maps: tuple[Tensor, ...]  # L times (B, channels, H / stride, W / stride): the neck's
    raw: Any  # the detector family's, see heads.detection.families
    image_size: tuple[int, int]  # (H, W) of the network's input in pixels


class DetectionHead(TiedOnce, Head):
    """Boxes of a fixed set of classes.

    A class that nobody looked for on an image (`DetectionTarget.known`) gives no loss there.

    Args:
        detector: a preset, "atss" (of the small ones it learned fastest where it was measured),
            "fcos", "retinanet", "faster_rcnn", "dino" (Foundation X's) or "deformable_detr"; or a
            detector configuration of mmdet 3, as a mapping, as a file's path, or as
            "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py" of those that mmdet ships. Of it the
            backbone and the images' preparation are dropped, and the classes are set.
        detector_args: a preset's numbers, see `.presets`, `.detr_presets` and `.two_stage_presets`.
        shared: what all heads with the same `shared_name` have in common: null, "neck", "encoder"
            (Foundation X; of a detector that is no transformer the neck) or "decoder" (X+: also
            the encoder). A lock names the parts as shared.NAME_neck, _encoder and _decoder.
        shared_name: what the names of the shared parts begin with.
        level_norm: a LayerNorm on each of the maps read, as Foundation X has.
        min_stride: maps finer than this many pixels per cell are left out; presets: 8. A
            configuration reads as many of the coarsest maps as its neck has `in_channels`.
        extra_levels: of a preset, coarser levels on top of the backbone's, each of twice the
            stride; 1.
        max_boxes: most boxes predicted for one image; presets: 100, dino: 300.
        score_threshold: boxes with a lower class probability are not predicted; 0.05 where the
            detector has a threshold, else none.
        nms_iou: of two boxes of one class that overlap more, the lower score is dropped; presets:
            0.5. The transformers have no such step.
        display_threshold: boxes with a lower score are not drawn.

    Raises:
        ConfigError: for a value outside these, a configuration that mmdet cannot build, or one that
            does not fit the backbone's maps.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"detection"})
    reads: ClassVar[str] = "maps"
    main_metric = "map50"

    neck: Any  # mmdet's modules have no types
    detector: Any

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        detector: str | Mapping[str, Any] = "atss",
        detector_args: Mapping[str, Any] | None = None,
        shared: str | None = None,
        shared_name: str = "detector",
        level_norm: bool = False,
        min_stride: int | None = None,
        extra_levels: int | None = None,
        max_boxes: int | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        display_threshold: float = 0.3,
    ) -> None:
        super().__init__(task, features)
        from .build import build_detector, build_neck, check_fit
        from .config import PRESETS, plan_detector, set_postprocessing
        from .detr_sharing import shared_offers
        from .families import family_of, says_yes_or_no
        from .files import load_config

        where = f"head of task {task.key!r}"
        _check_range(where, "extra_levels", extra_levels, 0)
        _check_range(where, "max_boxes", max_boxes, 1)
        _check_range(where, "score_threshold", score_threshold, 0, 1)
        _check_range(where, "nms_iou", nms_iou, 0, 1)
        self.score_threshold = score_threshold or 0.0
        self.display_threshold = display_threshold
        if isinstance(detector, str) and detector not in PRESETS:
            detector = load_config(detector, sorted(PRESETS), where)
            self.resolved_args = {"detector": detector}
        plan = plan_detector(
            detector, detector_args, features, len(task.classes), min_stride, extra_levels, where
        )
        set_postprocessing(plan.detector, max_boxes, score_threshold, nms_iou, where)
        self.levels = plan.levels
        offers = shared_offers(plan, features, shared, shared_name, level_norm, where)
        if not offers:
            self.neck = build_neck(plan, features, level_norm, where)
        self.detector = build_detector(plan, where)
        for offer in offers:
            self._borrow(*offer)
        self._family = family_of(self.detector)
        self.compared = self._family.compared
        self.exclusive = not says_yes_or_no(self.detector)
        check_fit(self.neck, self.detector, features, self.levels, where)

    def _borrow(self, name: str, recipe: Any, make: Any) -> None:
        from .detr_sharing import borrow

        for attribute, part in self.share(name, recipe, make).named_children():
            borrow(self if attribute == "neck" else self.detector, attribute, part)

    def forward(
        self, features: Features, target: Target | None = None, like: Any | None = None
    ) -> DetectionOutput:
        """Reads the maps at `levels`. DINO adds noisy boxes of the target; two-stage detectors
        sample proposals by it, and without it compute their boxes here."""
        maps = tuple(self.neck(tuple(features.maps[level] for level in self.levels)))
        scene = self._scene(len(maps[0]), features.image_size, target)
        raw = self._family.forward(self.detector, maps, scene, like.raw if like else None)
        return DetectionOutput(maps, raw, features.image_size)

    def loss(self, output: DetectionOutput, target: Target) -> dict[str, Tensor]:
        """mmdet's terms (`loss_cls`, `loss_bbox`, ...), each summed over the levels.

        They are divided by the number of matched boxes, averaged over the ranks: under DDP every
        rank must call this in the same step.
        """
        scene = self._scene(len(output.maps[0]), output.image_size, target)
        terms = self._family.loss(self.detector, output.raw, scene)
        return {name: _total(term) for name, term in terms.items() if "loss" in name}

    @torch.no_grad()
    def predict(self, output: DetectionOutput) -> BoxPrediction:
        """At most `max_boxes` boxes an image, inside the image, by falling score."""
        scene = self._scene(len(output.maps[0]), output.image_size, None)
        found = self._family.predict(self.detector, output.raw, scene)
        kept = [_by_score(image, self.score_threshold) for image in found]
        return BoxPrediction(
            boxes=[image.bboxes.float() for image in kept],
            scores=[image.scores.float() for image in kept],
            labels=[image.labels for image in kept],
        )

    def graph(self, features: Features) -> dict[str, Tensor]:
        """Of a dense detector: see `heads.detection.graph.dense_graph`."""
        from .graph import dense_graph

        maps = tuple(self.neck(tuple(features.maps[level] for level in self.levels)))
        return dense_graph(self, maps, features.image_size)

    def graph_facts(self) -> dict[str, Any]:
        """How boxes are chosen from the graph's."""
        from .graph import choice_facts

        return choice_facts(self)

    def comparable(self) -> dict[str, Comparable]:
        """The backbone's maps, the neck's cells as "decoder", and what the detector's family adds:
        see `heads.detection.families`."""
        return {
            "backbone": lambda features, _: features.maps[-1],
            "pyramid": lambda features, _: features.maps,
            "decoder": lambda _, output: _cells(output.maps),
            **self._family.comparable(self.detector),
        }

    def class_rows(self) -> dict[str, ClassRows] | None:
        """Of the presets and of configurations with their class layers; else None."""
        from .class_layers import class_rows

        return class_rows(self.detector, self.state_dict(), len(self.task.classes))

    def metrics(self, task: TaskSpec | None = None) -> BoxAP:
        """COCO's average precision and FROC: see `heads.detection.box_ap.BoxAP`."""
        from .box_ap import BoxAP

        return BoxAP((task or self.task).classes)

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """Outlines all boxes of the truth, or the predicted ones above `display_threshold`."""
        from matplotlib.patheffects import withStroke

        assert isinstance(shown, BoxPrediction | DetectionTarget)
        boxes, labels = _numpy(shown.boxes[index]), _numpy(shown.labels[index])
        scores = None
        if isinstance(shown, BoxPrediction):
            scores = _numpy(shown.scores[index])
            visible = scores >= self.display_threshold
            boxes, labels, scores = boxes[visible], labels[visible], scores[visible]
        show_image(axes, _numpy(image).transpose(1, 2, 0))
        before = len(axes.patches)
        draw_boxes(axes, boxes, labels, self.task.classes, scores)
        for outline, label in zip(axes.patches[before:], labels, strict=True):
            outline.set_linestyle(LINES[int(label) % len(LINES)])  # type: ignore[arg-type]
            outline.set_path_effects([withStroke(linewidth=2.4, foreground="black", alpha=0.5)])

    def _scene(self, batch: int, size: tuple[int, int], target: Target | None) -> Any:
        from .families import make_scene

        assert target is None or isinstance(target, DetectionTarget)
        return make_scene(batch, size, target)


def _check_range(
    where: str, name: str, value: float | None, low: float, high: float = math.inf
) -> None:
    if value is not None and not low <= value <= high:
        expected = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ConfigError(f"{where}: {name} is {value}; expected a number {expected}")


def _by_score(found: Any, threshold: float) -> Any:
    """mmdet's boxes of one image from the surest on, none below the threshold."""
    found = found[found.scores >= threshold]
    return found[found.scores.argsort(descending=True, stable=True)]


def _cells(maps: tuple[Tensor, ...]) -> Tensor:
    """(B, channels, cells of all levels)."""
    return torch.cat([level.flatten(2) for level in maps], dim=2)


def _total(term: Tensor | list[Tensor]) -> Tensor:
    return torch.stack(term).sum() if isinstance(term, list) else term.sum()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
