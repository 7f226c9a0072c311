"""Which timm model an encoder is, from the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from timm import is_model
from torch import Tensor

from ark.errors import ConfigError
from ark.importing.layouts import layout_of

Counts = tuple[int, ...]  # of each stage
# embedding width, depths, heads, window -> model
SWINS: dict[tuple[int, Counts, Counts, int], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 12): "swin_large_patch4_window12_384",
}
# depths, widths
CONVNEXTS: dict[tuple[Counts, Counts], str] = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "convnext_xlarge",
}
# depths, bottleneck
RESNETS: dict[tuple[Counts, bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# width, depth, patch, layer scale
VITS = {
    (192, 12, 16, False): "vit_tiny_patch16_224",
    (384, 12, 16, False): "vit_small_patch16_224",
    (384, 12, 8, False): "vit_small_patch8_224",
    (768, 12, 8, False): "vit_base_patch8_224",
    (768, 12, 16, False): "vit_base_patch16_224",
    (768, 12, 32, False): "vit_base_patch32_224",
    (1024, 24, 16, False): "vit_large_patch16_224",
    (1024, 24, 32, False): "vit_large_patch32_224",
    (1280, 32, 14, False): "vit_huge_patch14_224",
    (384, 12, 14, True): "vit_small_patch14_dinov2",
    (768, 12, 14, True): "vit_base_patch14_dinov2",
    (1024, 24, 14, True): "vit_large_patch14_dinov2",
}
HEAD_WIDTH = 64  # of every ViT listed; shapes do not tell it
FIX = "name the timm model with --backbone (and --backbone_args)"


def find_variant(state: Mapping[str, Tensor], side: int | None = None) -> dict[str, Any]:
    """`Network.architecture["backbone"]` of an encoder with timm's names.

    Args:
        side: pixels of a side of the input; None: the file's own, else the model's usual.

    Raises:
        ConfigError: it is none of the families here.
    """
    layout = layout_of(state)
    finders = {"swin": _swin, "convnext": _convnext, "vit": _vit, "resnet": _resnet}
    if layout is None or layout.name not in finders:
        raise ConfigError(
            f"the encoder is of no family that shapes tell ({', '.join(finders)}); its first "
            f"tensors are {list(state)[:4]}; {FIX}"
        )
    try:
        name, args, usual = finders[layout.name](state)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the encoder looks like a {layout.name}, but is no usual or no whole one "
            f"({_lack(error)}); {FIX}"
        ) from error
    return {"name": name, "image_size": side or usual, "args": args}


def _lack(error: KeyError | ValueError) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def swin_side(state: Mapping[str, Tensor]) -> int | None:
    """Pixels of the input for which an old timm Swin's masks were made: (windows, N, N)."""
    mask, patches = state.get("layers.0.blocks.1.attn_mask"), state.get("patch_embed.proj.weight")
    if mask is None or patches is None or mask.ndim != 3:
        return None
    return math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * patches.shape[-1]


def vit_side(state: Mapping[str, Tensor]) -> int | None:
    """Pixels of the input that a vision transformer's position embedding was made for; a few
    places of the class and other tokens do not change the root."""
    places, patches = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if places is None or patches is None or places.ndim != 3:
        return None
    return math.isqrt(places.shape[1]) * patches.shape[-1]


def _swin(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], int]:
    depths = _depths(state, r"layers\.(\d+)\.blocks\.(\d+)\.")
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    tables = [
        state[f"layers.{n}.blocks.0.attn.relative_position_bias_table"] for n in range(len(depths))
    ]
    heads = tuple(table.shape[1] for table in tables)
    windows = tuple((math.isqrt(table.shape[0]) + 1) // 2 for table in tables)
    hidden = state["layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    alike = len(set(windows)) == 1 and patch == 4 and hidden == 4 * width
    if alike and (name := SWINS.get((width, depths, heads, windows[0]))):
        return name, {}, int(name.rpartition("_")[2])
    window = windows[0] if len(set(windows)) == 1 else list(windows)
    args = {
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "window_size": window,
        "patch_size": patch,
        "mlp_ratio": hidden / width,
    }
    return "swin_base_patch4_window7_224", args, windows[0] * patch * 2 ** (len(depths) - 1)


def _convnext(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], int]:
    depths = _depths(state, r"stages\.(\d+)\.blocks\.(\d+)\.")
    widths = tuple(
        state[f"stages.{n}.blocks.0.conv_dw.weight"].shape[0] for n in range(len(depths))
    )
    if name := CONVNEXTS.get((depths, widths)):
        return name, {}, 224
    return "convnext_base", {"depths": list(depths), "dims": list(widths)}, 224


def _vit(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], int]:
    (depth,) = _depths(state, r"blocks\.()(\d+)\.")
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    scaled = "blocks.0.ls1.gamma" in state
    side = vit_side(state) or 224
    pooled = {"global_pool": "avg"} if "fc_norm.weight" in state else {}  # MAE, fine-tuned
    name = VITS.get((width, depth, patch, scaled))
    if name and "reg_token" in state:
        name = name.replace("patch14_", f"patch14_reg{state['reg_token'].shape[1]}_")
    if name and is_model(name):
        return name, pooled, side
    args = {
        **pooled,
        "embed_dim": width,
        "depth": depth,
        "patch_size": patch,
        "num_heads": max(1, width // HEAD_WIDTH),
    }
    return f"vit_base_patch{'14_dinov2' if scaled else '16_224'}", args, side


def _resnet(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], int]:
    depths = _depths(state, r"layer(\d)\.(\d+)\.")
    bottleneck = "layer1.0.conv3.weight" in state
    if state["layer1.0.conv1.weight"].shape[0] != 64:
        raise ValueError("its first blocks are not 64 wide, as of a wide ResNet or ResNeXt")
    if (depths, bottleneck) not in RESNETS:
        raise ValueError(f"no usual ResNet has stages of {depths} blocks")
    return RESNETS[depths, bottleneck], {}, 224


def _depths(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has."""
    found: dict[str, set[str]] = {}
    for name in state:
        if match := re.match(pattern, name):
            found.setdefault(match[1], set()).add(match[2])
    return tuple(len(found[stage]) for stage in sorted(found, key=lambda s: int(s or 0)))
