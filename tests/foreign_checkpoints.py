"""Checkpoints with the papers' key layouts (specs ark.md and foundation_x.md), small and random."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTH, DEPTHS, HEADS, WINDOW, SIDE = 16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 128  # maps 32, 16, 8, 4
ARK_CLASSES = (14, 14, 14, 3, 6, 1)
FOUNDATION_CLASSES = (1, 1, 1, 3, 13, 1, 14, 14, 6, 1, 14)
TOP = WIDTH * 2 ** (len(DEPTHS) - 1)


class Maker:
    """Random tensors that are repeatable and not all alike."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def tensor(self, name: str, *shape: int, scale: float = 0.2, plus: float = 0.0) -> None:
        self.state[name] = plus + scale * torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        self.tensor(f"{name}.weight", outputs, inputs, scale=0.5 / inputs**0.5)
        if bias:
            self.tensor(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self.tensor(f"{name}.weight", width, plus=1.0)
        self.tensor(f"{name}.bias", width)


def swin(maker: Maker, prefix: str = "", old: bool = True, masks: bool = True) -> None:
    """A Swin as timm 0.5 wrote it, with its buffers; `old` False: downsample as timm >= 0.9."""
    maker.tensor(f"{prefix}patch_embed.proj.weight", WIDTH, 3, 4, 4)
    maker.tensor(f"{prefix}patch_embed.proj.bias", WIDTH)
    maker.norm(f"{prefix}patch_embed.norm", WIDTH)
    area = WINDOW**2
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width, side = WIDTH * 2**i, SIDE // 4 // 2**i
        for j in range(depth):
            block = f"{prefix}layers.{i}.blocks.{j}"
            maker.norm(f"{block}.norm1", width)
            maker.linear(f"{block}.attn.qkv", width, 3 * width)
            maker.linear(f"{block}.attn.proj", width, width)
            maker.tensor(
                f"{block}.attn.relative_position_bias_table",
                (2 * WINDOW - 1) ** 2,
                heads,
                scale=1.0,
            )
            index = torch.zeros(area, area, dtype=torch.int64)
            maker.state[f"{block}.attn.relative_position_index"] = index
            maker.norm(f"{block}.norm2", width)
            maker.linear(f"{block}.mlp.fc1", width, 4 * width)
            maker.linear(f"{block}.mlp.fc2", 4 * width, width)
            if masks and j % 2 and side > WINDOW:
                maker.state[f"{block}.attn_mask"] = torch.zeros((side // WINDOW) ** 2, area, area)
        if i < len(DEPTHS) - 1:
            down = f"{prefix}layers.{i if old else i + 1}.downsample"
            maker.norm(f"{down}.norm", 4 * width)
            maker.linear(f"{down}.reduction", 4 * width, 2 * width, bias=False)
    maker.norm(f"{prefix}norm", TOP)


def ark_state(hidden: bool, seed: int = 0, old: bool = True) -> dict[str, Tensor]:
    """Teacher or student of Ark-6 (projector with a hidden layer) or Ark+."""
    maker = Maker(seed)
    swin(maker, old=old)
    maker.linear("head", TOP, 14)
    for number in (0, 2) if hidden else ("",):
        inputs = 24 if number == 2 else TOP
        maker.linear(f"projector.{number}".rstrip("."), inputs, 24)
    for number, classes in enumerate(ARK_CLASSES):
        maker.linear(f"omni_heads.{number}", 24, classes)
    return maker.state


def ark_plus_file(seed: int = 0) -> dict[str, Any]:
    """{epoch, lossMIN, state_dict, teacher, optimizer, scheduler}, as DataParallel saved it."""

    def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"module.{name}": tensor for name, tensor in state.items()}

    return {
        "epoch": 50,
        "lossMIN": np.float64(0.25),
        "state_dict": parallel(ark_state(False, seed + 1)),
        "teacher": parallel(ark_state(False, seed)),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float32(0.3), "params": [0]}]},
        "scheduler": {"base_values": [0.3], "metric": np.float64(1.0)},
    }


def foundation_file(plus: bool = False, detectors: bool = False, seed: int = 0) -> dict[str, Any]:
    """{model, teacher_model, optimizer, epoch, args}."""
    return {
        "model": foundation_state(plus, detectors, seed + 1),
        "teacher_model": foundation_state(plus, detectors, seed),
        "optimizer": {},
        "epoch": 150,
        "args": argparse.Namespace(lr=1e-4, backbone="swin_B_224_22k", device=None),
    }


def foundation_state(plus: bool, detectors: bool, seed: int = 0) -> dict[str, Tensor]:
    maker = Maker(seed)
    swin(maker, "backbone.0.", masks=False)
    for level in (1, 2, 3):
        maker.norm(f"backbone.0.Locnorm{level}", WIDTH * 2**level)
    for number, classes in enumerate(FOUNDATION_CLASSES):
        maker.linear(f"backbone.0.classification_heads.{number}", TOP, classes)
    maker.tensor("backbone.0.segmentation_PPN.stages.0.1.weight", TOP, TOP, 1, 1)
    maker.tensor("backbone.0.segmentation_FPN.conv_fusion.0.weight", WIDTH, 8, 3, 3)
    for number in (2, 4, 5):
        maker.tensor(f"backbone.0.segmentation_heads.{number}.weight", 1, 8, 3, 3)
    if detectors:
        dino(maker, plus)
    return maker.state


LOCAL, FFN, QUERIES, LAYERS = 32, 48, 20, 2
BOXES = (1, 1, 1, 1, 13, 1)  # classes; the class layers have one output more, of COCO's id 0


def dino(maker: Maker, plus: bool) -> None:
    """DINO by its original names; a decoder for each of six datasets (X), or one (X+)."""
    for level in range(4):
        inputs, side = (WIDTH * 2 ** (level + 1), 1) if level < 3 else (TOP, 3)
        maker.tensor(f"input_proj.{level}.0.weight", LOCAL, inputs, side, side)
        maker.tensor(f"input_proj.{level}.0.bias", LOCAL)
        maker.norm(f"input_proj.{level}.1", LOCAL)
    maker.tensor("label_enc.weight", 15, LOCAL)
    maker.tensor("transformer.level_embed", 4, LOCAL)
    for layer in range(LAYERS):
        name = f"transformer.encoder.layers.{layer}"
        _deformable(maker, f"{name}.self_attn")
        _feed(maker, name, 2)
    if plus:
        _decoder(maker, "")
    for number, classes in enumerate(BOXES):
        if not plus:
            _decoder(maker, f".{number}")
        maker.tensor(f"transformer.tgt_embed.{number}.weight", QUERIES, LOCAL)
        _box_layers(maker, f"transformer.enc_out_bbox_embed.{number}")
        _class_layer(maker, f"transformer.enc_out_class_embed.{number}", classes)
        for layer in range(LAYERS):
            top = "transformer.decoder.{}_embed" if plus else "{}_embed_"
            _box_layers(maker, f"{top.format('bbox')}.{number}.{layer}")
            _class_layer(maker, f"{top.format('class')}.{number}.{layer}", classes)


def _decoder(maker: Maker, number: str) -> None:
    for layer in range(LAYERS):
        name = f"transformer.decoder{number}.layers.{layer}"
        _deformable(maker, f"{name}.cross_attn")
        maker.tensor(f"{name}.self_attn.in_proj_weight", 3 * LOCAL, LOCAL)
        maker.tensor(f"{name}.self_attn.in_proj_bias", 3 * LOCAL)
        maker.linear(f"{name}.self_attn.out_proj", LOCAL, LOCAL)
        _feed(maker, name, 3)
    maker.norm(f"transformer.decoder{number}.norm", LOCAL)
    maker.linear(f"transformer.decoder{number}.ref_point_head.layers.0", 512, LOCAL)
    maker.linear(f"transformer.decoder{number}.ref_point_head.layers.1", LOCAL, LOCAL)
    maker.linear(f"transformer.enc_output{number}", LOCAL, LOCAL)
    maker.norm(f"transformer.enc_output_norm{number}", LOCAL)


def _deformable(maker: Maker, name: str) -> None:
    places = 8 * 4 * 4  # heads, levels, points
    maker.linear(f"{name}.sampling_offsets", LOCAL, 2 * places)
    maker.linear(f"{name}.attention_weights", LOCAL, places)
    maker.linear(f"{name}.value_proj", LOCAL, LOCAL)
    maker.linear(f"{name}.output_proj", LOCAL, LOCAL)


def _feed(maker: Maker, name: str, norms: int) -> None:
    maker.linear(f"{name}.linear1", LOCAL, FFN)
    maker.linear(f"{name}.linear2", FFN, LOCAL)
    for norm in range(1, norms + 1):
        maker.norm(f"{name}.norm{norm}", LOCAL)


def _class_layer(maker: Maker, name: str, classes: int) -> None:
    """COCO's ids begin at 1: output 0 has learned to say no."""
    maker.linear(name, LOCAL, classes + 1)
    maker.state[f"{name}.bias"][0] = -20.0


def _box_layers(maker: Maker, name: str) -> None:
    for layer, outputs in enumerate((LOCAL, LOCAL, 4)):
        maker.linear(f"{name}.layers.{layer}", LOCAL, outputs)
