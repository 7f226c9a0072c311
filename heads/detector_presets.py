"""mmdet configurations of small single-stage detectors, each a function of a few numbers.

All start with a class probability of 0.01 (mmdet's `bias_prob`), so that the first loss is not
that of thousands of false boxes, and normalise by groups: detection batches are small.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ark.types import ConfigError
from heads.mmdet_adapter import mmdet_models

FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}


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


def fcos(channels: int, convs: int, strides: Sequence[int]) -> dict[str, Any]:
    """Anchor-free; each level learns boxes that reach 4 to 8 of its cells from the centre."""
    mmdet_models()  # before anything of mmdet is imported
    from heads.strided_fcos import StridedFCOSHead

    edges = [-1, *(8 * stride for stride in strides[:-1]), 1e8]
    return {
        "type": StridedFCOSHead,
        **_tower(channels, convs),
        "strides": list(strides),
        "regress_ranges": list(pairwise(edges)),
        "center_sampling": True,
        "centerness_on_reg": True,
        "loss_cls": FOCAL,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
        "loss_centerness": CENTERNESS,
    }


def retinanet(channels: int, convs: int, strides: Sequence[int]) -> dict[str, Any]:
    """Nine anchors a cell, matched by their overlap with the truth."""
    return {
        "type": "RetinaHead",
        **_tower(channels, convs),
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": list(strides),
        },
        "bbox_coder": _delta_coder(1.0, 1.0),
        "loss_cls": FOCAL,
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        "train_cfg": {
            "assigner": {
                "type": "MaxIoUAssigner",
                "pos_iou_thr": 0.5,
                "neg_iou_thr": 0.4,
                # at 0 a box that overlaps no anchor would claim every anchor
                "min_pos_iou": 1e-3,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }


def atss(channels: int, convs: int, strides: Sequence[int]) -> dict[str, Any]:
    """One anchor a cell, 4 cells wide; each box chooses its own overlap threshold.

    mmdet's 8 cells make the smallest anchor 64 pixels wide: boxes of 14 pixels then took over three
    times as many steps to be found.
    """
    return {
        "type": "ATSSHead",
        **_tower(channels, convs),
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 1,
            "ratios": [1.0],
            "strides": list(strides),
        },
        "bbox_coder": _delta_coder(0.1, 0.2),
        "loss_cls": FOCAL,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_centerness": CENTERNESS,
        "train_cfg": {
            "assigner": {"type": "ATSSAssigner", "topk": 9},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }


PRESETS: dict[str, Callable[[int, int, Sequence[int]], dict[str, Any]]] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "atss": atss,
}


def detector_config(
    detector: str | Mapping[str, Any], channels: int, convs: int, strides: Sequence[int], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of neck and dense head, for the caller to complete.

    Args:
        detector: a preset's name, or `{"neck": ..., "bbox_head": ...}`, which is copied.
        strides: pixels per cell of each of the neck's levels, finest first.
        where: what this configures, for error messages.

    Raises:
        ConfigError: for an unknown preset, another set of keys, a width that GN cannot group, or
            FCOS's `norm_on_bbox` (see `heads.strided_fcos`).
    """
    if isinstance(detector, Mapping):
        if set(detector) != {"neck", "bbox_head"}:
            raise ConfigError(
                f"{where}: a detector of your own needs exactly the keys 'neck' and 'bbox_head', "
                f"each an mmdet configuration, but has {sorted(detector)}"
            )
        if detector["bbox_head"].get("norm_on_bbox"):
            raise ConfigError(
                f"{where}: bbox_head.norm_on_bbox is true; expected false, because such a head "
                "predicts cells in training but pixels in evaluation; take the preset 'fcos'"
            )
        return copy.deepcopy(dict(detector["neck"])), copy.deepcopy(dict(detector["bbox_head"]))
    if detector not in PRESETS:
        raise ConfigError(
            f"{where}: unknown detector {detector!r}; expected one of {sorted(PRESETS)}, or a "
            "mapping with the mmdet configurations 'neck' and 'bbox_head'"
        )
    if channels < 8 or channels % 8:
        raise ConfigError(
            f"{where}: channels is {channels}; expected a multiple of 8, such as 64 or 96, "
            "because the normalisation takes groups of 8"
        )
    return fpn(channels, len(strides)), PRESETS[detector](channels, convs, strides)


def postprocessing(max_boxes: int, score_threshold: float, nms_iou: float) -> dict[str, Any]:
    """From the dense head's output to boxes: thresholds, then NMS within each class."""
    return {
        "nms_pre": 1000,
        "min_bbox_size": 0,
        "score_thr": score_threshold,
        "nms": {"type": "nms", "iou_threshold": nms_iou},
        "max_per_img": max_boxes,
    }


def _tower(channels: int, convs: int) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "feat_channels": channels,
        "stacked_convs": convs,
        "norm_cfg": group_norm(channels),
    }


def _delta_coder(centre: float, size: float) -> dict[str, Any]:
    return {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [centre, centre, size, size],
    }
