"""mmdet configurations of detection transformers, each a function of a few numbers.

The defaults of `dino` are Foundation X's (spec foundation_x.md, Network, L), those of
`deformable_detr` its paper's (arXiv 2010.04159) but for dropout: student and teacher are compared,
and one of them is in training mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .presets import focal, group_norm


def dino(
    strides: Sequence[int],
    width: int = 256,
    heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    ffn: int = 2048,
    points: int = 4,
    dropout: float = 0.0,
    temperature: int = 20,
    queries: int = 900,
    denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    class_weight: float = 1.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    class_cost: float = 2.0,
    l1_cost: float = 5.0,
    giou_cost: float = 2.0,
    input_bias: bool = False,
) -> dict[str, Any]:
    """DINO (arXiv 2203.03605): proposals from the encoder, denoised queries, no NMS.

    Args:
        queries: boxes proposed for an image.
        denoising: most pairs of noisy boxes an image, in training.
        label_noise: twice the share of noisy boxes whose class is drawn anew.
        box_noise: how far corners move, in half widths and heights.
        input_bias: the first convolutions have a bias, as the original code's and not mmdet's have.
    """
    config = _transformer(strides, width, heads, encoder_layers, decoder_layers, ffn, points)
    config["neck"]["bias"] = input_bias or "auto"
    _drop(config, dropout)
    return config | {
        "type": "DINO",
        "num_queries": queries,
        "with_box_refine": True,
        "as_two_stage": True,
        "positional_encoding": _positions(width, temperature, 0.0),
        "bbox_head": _box_head("DINOHead", width, class_weight, l1_weight, giou_weight),
        "dn_cfg": {
            "label_noise_scale": label_noise,
            "box_noise_scale": box_noise,
            "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": denoising},
        },
        "train_cfg": _matching(class_cost, l1_cost, giou_cost),
        "test_cfg": {"max_per_img": 300},
    }


def deformable_detr(
    strides: Sequence[int],
    width: int = 256,
    heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    ffn: int = 1024,
    points: int = 4,
    dropout: float = 0.0,
    temperature: int = 10000,
    queries: int = 300,
    refine: bool = True,
    two_stage: bool = True,
    class_weight: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    class_cost: float = 2.0,
    l1_cost: float = 5.0,
    giou_cost: float = 2.0,
) -> dict[str, Any]:
    """Deformable DETR (arXiv 2010.04159).

    Args:
        refine: each decoder layer corrects the boxes of the one before.
        two_stage: queries start at boxes that the encoder proposes, not at learned points.
    """
    config = _transformer(strides, width, heads, encoder_layers, decoder_layers, ffn, points)
    _drop(config, dropout)
    return config | {
        "type": "DeformableDETR",
        "num_queries": queries,
        "with_box_refine": refine,
        "as_two_stage": two_stage,
        "positional_encoding": _positions(width, temperature, -0.5),
        "bbox_head": _box_head("DeformableDETRHead", width, class_weight, l1_weight, giou_weight),
        "train_cfg": _matching(class_cost, l1_cost, giou_cost),
        "test_cfg": {"max_per_img": 100},
    }


def _transformer(
    strides: Sequence[int],
    width: int,
    heads: int,
    encoder_layers: int,
    decoder_layers: int,
    ffn: int,
    points: int,
) -> dict[str, Any]:
    levels = len(strides)
    deformable = {
        "embed_dims": width,
        "num_heads": heads,
        "num_levels": levels,
        "num_points": points,
    }
    feed = {"embed_dims": width, "feedforward_channels": ffn}
    return {
        "num_feature_levels": levels,
        "neck": {
            "type": "ChannelMapper",
            "kernel_size": 1,
            "out_channels": width,
            "act_cfg": None,
            "norm_cfg": group_norm(width),
            "num_outs": levels,
        },
        "encoder": {
            "num_layers": encoder_layers,
            "layer_cfg": {"self_attn_cfg": dict(deformable), "ffn_cfg": dict(feed)},
        },
        "decoder": {
            "num_layers": decoder_layers,
            "return_intermediate": True,
            "post_norm_cfg": None,
            "layer_cfg": {
                "self_attn_cfg": {"embed_dims": width, "num_heads": heads},
                "cross_attn_cfg": dict(deformable),
                "ffn_cfg": dict(feed),
            },
        },
    }


def _drop(config: dict[str, Any], dropout: float) -> None:
    for coder in ("encoder", "decoder"):
        layer = config[coder]["layer_cfg"]
        layer["ffn_cfg"]["ffn_drop"] = dropout
        for attention in ("self_attn_cfg", "cross_attn_cfg"):
            if attention in layer:
                layer[attention]["dropout"] = dropout


def _positions(width: int, temperature: int, offset: float) -> dict[str, Any]:
    return {
        "num_feats": width // 2,
        "normalize": True,
        "offset": offset,
        "temperature": temperature,
    }


def _box_head(kind: str, width: int, classes: float, l1: float, giou: float) -> dict[str, Any]:
    return {
        "type": kind,
        "embed_dims": width,
        "sync_cls_avg_factor": True,
        "loss_cls": focal(classes),
        "loss_bbox": {"type": "L1Loss", "loss_weight": l1},
        "loss_iou": {"type": "GIoULoss", "loss_weight": giou},
    }


def _matching(classes: float, l1: float, giou: float) -> dict[str, Any]:
    costs = [
        {"type": "FocalLossCost", "weight": classes},
        {"type": "BBoxL1Cost", "weight": l1, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": giou},
    ]
    return {"assigner": {"type": "HungarianAssigner", "match_costs": costs}}
