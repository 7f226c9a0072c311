"""mmdet configurations of two-stage detectors, each a function of a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .presets import delta_coder, fpn, max_iou_assigner


def faster_rcnn(
    strides: Sequence[int],
    channels: int = 64,
    fc_channels: int = 256,
    proposals: int = 300,
    samples: int = 256,
) -> dict[str, Any]:
    """Faster R-CNN with a feature pyramid (arXiv 1506.01497, 1612.03144).

    mmdet's own numbers are 256 channels, 1024 fc_channels, 1000 proposals and 512 samples.

    Args:
        fc_channels: width of the second stage's two hidden layers.
        proposals: boxes an image that the second stage classifies.
        samples: anchors, and proposals, of an image that a step learns from.
    """
    rpn = {
        "nms_pre": 1000,
        "max_per_img": proposals,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }
    return {
        "type": "FasterRCNN",
        "neck": fpn(channels, len(strides)),
        "rpn_head": _rpn_head(strides, channels),
        "roi_head": _roi_head(strides, channels, fc_channels),
        "train_cfg": {
            "rpn": {
                # a small box overlaps every anchor little; the best of them must find it
                "assigner": max_iou_assigner(0.7, 0.3, 1e-3),
                "sampler": _sampler(samples, 0.5, False),
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": dict(rpn),
            "rcnn": {
                "assigner": max_iou_assigner(0.5, 0.5, 0.5) | {"match_low_quality": False},
                "sampler": _sampler(samples, 0.25, True),
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": rpn,
            "rcnn": {
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 100,
            },
        },
    }


def _rpn_head(strides: Sequence[int], channels: int) -> dict[str, Any]:
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [4],
            "ratios": [0.5, 1.0, 2.0],
            "strides": list(strides),
        },
        "bbox_coder": delta_coder(1.0, 1.0),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _roi_head(strides: Sequence[int], channels: int, fc_channels: int) -> dict[str, Any]:
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "SingleRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
            "out_channels": channels,
            "featmap_strides": list(strides),
            # as in arXiv 1612.03144: regions of up to 28 cells on the finest level
            "finest_scale": 14 * strides[0],
        },
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": channels,
            "fc_out_channels": fc_channels,
            "roi_feat_size": 7,
            "bbox_coder": delta_coder(0.1, 0.2),
            "reg_class_agnostic": False,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }


def _sampler(count: int, positive: float, add_truth: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler",
        "num": count,
        "pos_fraction": positive,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_truth,
    }
