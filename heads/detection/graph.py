"""A dense detector without choices: every cell's boxes, decoded, and their scores.

What comes after (threshold, non-maximum suppression, the best ones) gives another number of boxes
for each image and is left to who runs the graph: `ark.exporting.boxes.choose` is Ark's.
Shape letters: see `ark.types`; A boxes of all cells.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ark.types import ConfigError

if TYPE_CHECKING:
    from .head import DetectionHead


def dense_graph(
    head: DetectionHead, maps: tuple[Tensor, ...], size: tuple[int, int]
) -> dict[str, Tensor]:
    """boxes (B, A, 4) xyxy in pixels of the network's input, inside it; scores (B, A, K), the
    class's probability times the centerness where the detector has one.

    Args:
        maps: of the neck.
        size: (H, W) of the network's input in pixels.

    Raises:
        ConfigError: the detector is of another family, or decodes in its own way.
    """
    check_dense(head)
    dense: Any = head.detector.bbox_head
    logits, offsets, *factors = ([level.float() for level in branch] for branch in dense(maps))
    places = [level.shape[-2:] for level in logits]
    priors = torch.cat(dense.prior_generator.grid_priors(places, torch.float32, maps[0].device))
    batch = logits[0].shape[0]
    width = dense.bbox_coder.encode_size
    anchors = priors.expand(batch, *priors.shape).reshape(-1, priors.shape[-1])
    boxes = dense.bbox_coder.decode(anchors, _rows(offsets, width).reshape(-1, width), size)
    scores = _probabilities(dense, _rows(logits, dense.cls_out_channels))
    if factors:
        scores = scores * _rows(factors[0], 1).sigmoid()
    if priors.shape[0] != sum(_level_sizes(head)):
        raise ConfigError(
            f"head of task {head.task.key}: has {priors.shape[0]} boxes, but its strides say "
            f"{_level_sizes(head)} by level; expected an image size that the strides divide"
        )
    return {"boxes": boxes.reshape(batch, -1, 4), "scores": scores}


def choice_facts(head: DetectionHead) -> dict[str, Any]:
    """The numbers that mmdet chooses boxes by."""
    config = head.detector.bbox_head.test_cfg
    return {
        "score_threshold": max(config.get("score_thr", 0.0), head.score_threshold),
        "level_sizes": _level_sizes(head),
        "level_candidates": config.get("nms_pre", -1),
        "nms_iou": config["nms"]["iou_threshold"],
        "max_boxes": config["max_per_img"],
    }


def check_dense(head: DetectionHead) -> None:
    """
    Raises:
        ConfigError: says why there is no graph.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    from .families import Dense

    where = f"head of task {head.task.key}: {type(head.detector).__name__}"
    if not isinstance(head._family, Dense):
        raise ConfigError(
            f"{where} chooses proposals within the network, whose number or order depends on the "
            "image; expected a dense detector: atss, fcos or retinanet"
        )
    dense: Any = head.detector.bbox_head
    own = [
        name
        for name in ("predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
        if getattr(type(dense), name) is not getattr(BaseDenseHead, name)
    ]
    nms = dense.test_cfg.get("nms", {})
    if own or nms.get("type") != "nms" or not hasattr(dense, "bbox_coder"):
        raise ConfigError(
            f"{where} decodes its boxes in its own way ({', '.join(own) or nms}); expected one "
            "like atss, fcos or retinanet"
        )


def _level_sizes(head: DetectionHead) -> list[int]:
    """Of the A boxes, how many are each level's, finest first."""
    priors = head.detector.bbox_head.prior_generator
    sides = [[math.ceil(head.info.image_size / s) for s in stride] for stride in priors.strides]
    return [h * w * n for (w, h), n in zip(sides, priors.num_base_priors, strict=True)]


def _rows(levels: list[Tensor], width: int) -> Tensor:
    """L times (B, anchors * width, h, w) -> (B, A, width)."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in levels], dim=1)


def _probabilities(dense: Any, logits: Tensor) -> Tensor:
    if getattr(dense.loss_cls, "activated", False):
        return logits
    return logits.sigmoid() if dense.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
