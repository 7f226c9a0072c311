"""DINO's names to mmdet's in `heads.detection`; a number after a module is a dataset's.

Both are the same network. The decoder's norms are counted otherwise: the original's norm2 follows
self-attention and norm1 cross-attention, mmdet's are in order.
"""

from __future__ import annotations

import re

BOX_LAYERS = {"0": "0", "1": "2", "2": "4"}  # mmdet counts the ReLUs between


def place_of(name: str, last: int) -> tuple[bool, int | None, str | None]:
    """(of the shared encoder, the dataset's number, name in mmdet's detector or None)."""
    if target := _in_encoder(name):
        return True, None, target
    if m := re.fullmatch(
        r"(?:transformer\.decoder\.)?(bbox|class)_embed_?\.(\d+)\.(\d+)\.(.*)", name
    ):
        return False, int(m[2]), _output(m[1], int(m[3]), m[4])
    if m := re.fullmatch(r"transformer\.decoder\.(\d+)\.(bbox|class)_embed_?\.(\d+)\.(.*)", name):
        return False, int(m[1]), _output(m[2], int(m[3]), m[4])
    if m := re.fullmatch(r"transformer\.decoder\.(?:(\d+)\.)?((?:layers|norm|ref_point).*)", name):
        return False, _number(m[1]), f"decoder.{_layer(m[2])}"
    if m := re.fullmatch(r"transformer\.enc_out_(bbox|class)_embed_?\.(?:(\d+)\.)?(.*)", name):
        return False, _number(m[2]), _output(m[1], last, m[3])
    for theirs, ours in (
        ("enc_output_norm", "memory_trans_norm"),
        ("enc_output", "memory_trans_fc"),
        ("tgt_embed", "query_embedding"),
    ):
        if m := re.fullmatch(rf"transformer\.{theirs}_?\.(?:(\d+)\.)?(weight|bias)", name):
            return False, _number(m[1]), f"{ours}.{m[2]}"
    return False, None, None


def _in_encoder(name: str) -> str | None:
    if m := re.fullmatch(r"backbone\.0\.Locnorm(\d)\.(.*)", name):
        return f"neck.0.norms.{int(m[1]) - 1}.{m[2]}"
    if m := re.fullmatch(r"input_proj\.(\d)\.([01])\.(.*)", name):
        level, part = int(m[1]), ("conv", "gn")[int(m[2])]
        convs = f"convs.{level}" if level < 3 else f"extra_convs.{level - 3}"
        return f"neck.1.{convs}.{part}.{m[3]}"
    if name == "transformer.level_embed":
        return "level_embed.weight"
    if m := re.fullmatch(r"transformer\.encoder\.(layers\..*)", name):
        return f"encoder.{_layer(m[1], decoder=False)}"
    return None


def _layer(name: str, decoder: bool = True) -> str:
    """A layer's parts as mmdet calls them."""
    order = {"1": "1", "2": "0", "3": "2"} if decoder else {"1": "0", "2": "1"}
    name = re.sub(r"^(layers\.\d+)\.norm(\d)", lambda m: f"{m[1]}.norms.{order[m[2]]}", name)
    name = re.sub(r"^(layers\.\d+)\.linear1", r"\1.ffn.layers.0.0", name)
    name = re.sub(r"^(layers\.\d+)\.linear2", r"\1.ffn.layers.1", name)
    return re.sub(r"\.self_attn\.(in_proj_|out_proj)", r".self_attn.attn.\1", name)


def _output(kind: str, layer: int, rest: str) -> str:
    if kind == "class":
        return f"bbox_head.cls_branches.{layer}.{rest}"
    _, number, what = rest.split(".")  # layers.1.weight
    return f"bbox_head.reg_branches.{layer}.{BOX_LAYERS[number]}.{what}"


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
