"""mmdet configurations of small single-stage detectors, each a function of a few numbers.

All start with a class probability of 0.01 (mmdet's `bias_prob`), so that the first loss is not
that of thousands of false boxes, and normalise by groups: detection batches are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .mmdet_adapter import mmdet_models

CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}


def fcos(strides: Sequence[int], channels: int = 64, convs: int = 2) -> dict[str, Any]:
    """Anchor-free; each level learns boxes that reach 4 to 8 of its cells from the centre."""
    mmdet_models()  # before anything of mmdet is imported
    from .strided_fcos import StridedFCOSHead

    edges = [-1, *(8 * stride for stride in strides[:-1]), 1e8]
    head = {
        "type": StridedFCOSHead,
        **_tower(channels, convs),
        "strides": list(strides),
        "regress_ranges": list(pairwise(edges)),
        "center_sampling": True,
        "centerness_on_reg": True,
        "loss_cls": focal(),
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
        "loss_centerness": dict(CENTERNESS),
    }
    return _detector("FCOS", channels, strides, head)


def retinanet(strides: Sequence[int], channels: int = 64, convs: int = 2) -> dict[str, Any]:
    """Nine anchors a cell, matched by their overlap with the truth."""
    head = {
        "type": "RetinaHead",
        **_tower(channels, convs),
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": list(strides),
        },
        "bbox_coder": delta_coder(1.0, 1.0),
        "loss_cls": focal(),
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    train = {
        # at min_pos_iou 0 a box that overlaps no anchor would claim every anchor
        "assigner": max_iou_assigner(0.5, 0.4, 1e-3),
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
    }
    return _detector("RetinaNet", channels, strides, head, train)


def atss(strides: Sequence[int], channels: int = 64, convs: int = 2) -> dict[str, Any]:
    """One anchor a cell, 4 cells wide; each box chooses its own overlap threshold.

    mmdet's 8 cells make the smallest anchor 64 pixels wide: boxes of 14 pixels then took over three
    times as many steps to be found.
    """
    head = {
        "type": "ATSSHead",
        **_tower(channels, convs),
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 1,
            "ratios": [1.0],
            "strides": list(strides),
        },
        "bbox_coder": delta_coder(0.1, 0.2),
        "loss_cls": focal(),
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_centerness": dict(CENTERNESS),
    }
    train = {
        "assigner": {"type": "ATSSAssigner", "topk": 9},
        "allowed_border": -1,
        "pos_weight": -1,
    }
    return _detector("ATSS", channels, strides, head, train)


def focal(weight: float = 1.0) -> dict[str, Any]:
    """Focal loss with its paper's numbers."""
    return {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": weight,
    }


def group_norm(channels: int) -> dict[str, Any]:
    """Groups of 8 channels: enough values for a mean even on a map of 2x2 cells."""
    return {"type": "GN", "num_groups": channels // 8}


def fpn(channels: int, levels: int) -> dict[str, Any]:
    """A feature pyramid; levels beyond the backbone's are strided convolutions on top."""
    return {
        "type": "FPN",
        "out_channels": channels,
        "num_outs": levels,
        "add_extra_convs": "on_output",
        "norm_cfg": group_norm(channels),
    }


def delta_coder(centre: float, size: float) -> dict[str, Any]:
    return {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [centre, centre, size, size],
    }


def max_iou_assigner(positive: float, negative: float, least: float) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "ignore_iof_thr": -1,
    }


def postprocessing(max_boxes: int = 100) -> dict[str, Any]:
    """From the dense head's output to boxes: thresholds, then NMS within each class."""
    return {
        "nms_pre": 1000,
        "min_bbox_size": 0,
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": max_boxes,
    }


def _detector(
    kind: str,
    channels: int,
    strides: Sequence[int],
    head: dict[str, Any],
    train: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "type": kind,
        "neck": fpn(channels, len(strides)),
        "bbox_head": head,
        "train_cfg": train,
        "test_cfg": postprocessing(),
    }


def _tower(channels: int, convs: int) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "feat_channels": channels,
        "stacked_convs": convs,
        "norm_cfg": group_norm(channels),
    }
