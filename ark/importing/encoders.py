"""An encoder's tensor names, as others spell them, to those of timm.

The layout is found by looking at the keys. Names that no rule changes stay: they are timm's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ark.errors import ConfigError
from ark.importing.record import Record

CLASSIFIER = "the classifier of another data set"
RECOMPUTED = "computed anew from the window and the image size"
OUTSIDE = "outside the encoder"
PRETEXT = "of the pretext task, no part of the encoder"


@dataclass(frozen=True)
class Layout:
    """
    Args:
        sign: a key that only this layout has, as a pattern.
        rules: (whole key, its name in timm) as patterns; the first that fits counts.
        drops: (whole key, why it is left out).
    """

    name: str
    sign: str
    rules: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()


_SWIN_BUFFERS = (r".*\.(attn_mask|relative_position_index)", RECOMPUTED)
_HEAD = (r"head\.(weight|bias|fc\..*)", CLASSIFIER)
LAYOUTS = (
    Layout("swin", r"layers\.0\.blocks\.0\..*", (), (_SWIN_BUFFERS, _HEAD)),
    Layout("convnext", r"stages\.0\.blocks\.0\.conv_dw\.weight", (), (_HEAD,)),
    Layout(
        "vit",  # timm, and the original DINO, DINOv2 and MAE
        r"blocks\.0\.attn\.qkv\.weight",
        (),
        (_HEAD, (r"decoder_.*|mask_token", PRETEXT)),
    ),
    Layout("resnet", r"layer1\.0\.conv1\.weight", (), ((r"fc\..*", CLASSIFIER),)),
    Layout(
        "torchvision swin",
        r"features\.1\.0\.attn\.qkv\.weight",
        (
            (r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
            (r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
            (r"(features\.\d+\.\d+\.mlp)\.0\.(.*)", r"\1.fc1.\2"),
            (r"(features\.\d+\.\d+\.mlp)\.3\.(.*)", r"\1.fc2.\2"),
        ),
        (_SWIN_BUFFERS, _HEAD),
    ),
    Layout(
        "torchvision convnext",
        r"features\.1\.0\.block\.0\.weight",
        (
            (r"features\.0\.(.*)", r"stem.\1"),
            (r"(features\.\d+\.\d+)\.layer_scale", r"\1.gamma"),
            (r"(features\.\d+\.\d+)\.block\.0\.(.*)", r"\1.conv_dw.\2"),
            (r"(features\.\d+\.\d+)\.block\.2\.(.*)", r"\1.norm.\2"),
            (r"(features\.\d+\.\d+)\.block\.3\.(.*)", r"\1.mlp.fc1.\2"),
            (r"(features\.\d+\.\d+)\.block\.5\.(.*)", r"\1.mlp.fc2.\2"),
            (r"classifier\.0\.(.*)", r"head.norm.\1"),
        ),
        ((r"classifier\.2\..*", CLASSIFIER),),
    ),
    Layout(
        "torchvision vit",
        r"conv_proj\.weight",
        (
            (r"class_token", "cls_token"),
            (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"encoder\.ln\.(.*)", r"norm.\1"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.(.*)", r"blocks.\1.norm\2.\3"),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)",
                r"blocks.\1.attn.qkv.\2",
            ),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)",
                r"blocks.\1.attn.proj.\2",
            ),
            # older files say linear_1 and linear_2
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)",
                r"blocks.\1.mlp.fc1.\2",
            ),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)",
                r"blocks.\1.mlp.fc2.\2",
            ),
        ),
        ((r"heads\..*", CLASSIFIER),),
    ),
    Layout(
        "transformers dinov2",  # RAD-DINO is one
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
        (
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.layer\.(\d+)\.attention\.attention\.(.*)", r"blocks.\1.attn.\2"),
            (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
            (r"encoder\.layer\.(\d+)\.(norm\d|mlp)\.(.*)", r"blocks.\1.\2.\3"),
            (r"layernorm\.(.*)", r"norm.\1"),
        ),
        ((r"embeddings\.mask_token", PRETEXT), (r"(classifier|pooler)\..*", CLASSIFIER)),
    ),
)
# what a trainer wraps around an encoder; DINO's projection head stands beside the first
BESIDE = re.compile(
    r"projector\.|omni_heads\.|classification_heads\.|Locnorm\d|segmentation_"
)  # in the papers' files
WRAPS = ("backbone.0.", "backbone.model.", "backbone.", "dinov2.", "model.", "encoder.")


def to_timm(state: Mapping[str, Tensor], record: Record, prefix: str = "") -> dict[str, Tensor]:
    """Tensors by timm's names; what was done is in `record`, under `prefix` + the file's name."""
    layout = layout_of(state)
    # Swin before timm 0.9 merges patches at the end of a stage, later ones at the start of the next
    old = (
        layout is not None and layout.name == "swin" and "layers.0.downsample.norm.weight" in state
    )
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if layout and (why := _dropped(layout, name)):
            record.drop(prefix + name, why)
            continue
        target = _renamed(layout, name) if layout else name
        if old:
            target = re.sub(
                r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", target
            )
        if target in found:
            raise ConfigError(f"{prefix}{name}: {target} is in the file twice; --drop=ONE_OF_THEM")
        found[target] = tensor.flatten() if target.endswith(".gamma") else tensor
        record.use(prefix + name, f"backbone.model.{target}")
    return _joined(found, record)


def layout_of(state: Iterable[str]) -> Layout | None:
    """None: none that is known here, so it must be timm's own."""
    names = list(state)
    return next((x for x in LAYOUTS if any(re.fullmatch(x.sign, n) for n in names)), None)


def imagenet(state: Iterable[str], record: Record) -> bool:
    """Whether the encoder's authors normalise as ImageNet is, although timm's ViT of the same shape
    does not: torchvision, DINO and MAE."""
    layout = layout_of(state)
    pretext = any(why == PRETEXT or why.startswith(OUTSIDE) for why in record.dropped.values())
    return layout is not None and (layout.name.startswith("torchvision") or pretext)


def unwrapped(state: Mapping[str, Tensor], record: Record) -> tuple[dict[str, Tensor], str]:
    """The encoder within a larger network, and the prefix that it stood under there."""
    inner, prefix = _inner(state, record)
    for name in [name for name in inner if BESIDE.match(name)]:
        del inner[name]
        record.drop(prefix + name, "a head's or the projector's, not the encoder's")
    return inner, prefix


def _inner(state: Mapping[str, Tensor], record: Record) -> tuple[dict[str, Tensor], str]:
    if layout_of(state) is None:
        for prefix in WRAPS:
            inner = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            if layout_of(inner) is None:
                continue
            for name in state:
                if not name.startswith(prefix):
                    record.drop(name, f"{OUTSIDE}, which is under {prefix!r}")
            return inner, prefix
    return dict(state), ""


def fitted(state: Mapping[str, Tensor], model: Any, record: Record) -> dict[str, Tensor]:
    """What of an encoder `model` takes: a classifier that it lacks is dropped, and a vision
    transformer's position embedding is resampled to its number of patches."""
    own = model.state_dict()
    found = {}
    for name, tensor in state.items():
        if name not in own and re.match(r"(head|head_dist|fc|classifier|fc_norm)\.", name):
            for source in record.forget(f"backbone.model.{name}"):
                record.drop(source, CLASSIFIER)
            continue
        if name == "pos_embed" and name in own and tensor.shape != own[name].shape:
            tensor = _resampled(tensor, model, record)
        found[name] = tensor
    return found


def _resampled(places: Tensor, model: Any, record: Record) -> Tensor:
    """A position embedding (1, places, D) for the model's grid of patches.

    Raises:
        ConfigError: its places are no square beside the model's class and other tokens.
    """
    expected = model.pos_embed.shape[1]
    prefix = (
        0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    )
    patches = places.shape[1] - prefix
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ConfigError(
            f"pos_embed has {places.shape[1]} places, expected a square of patches and {prefix} of "
            "other tokens; name the timm model that has such tokens (distilled, registers, no "
            "class token) with --backbone"
        )
    record.notes.append(f"pos_embed resampled from {places.shape[1]} to {expected} places")
    grid = list(model.patch_embed.grid_size)
    return resample_abs_pos_embed(places, grid, num_prefix_tokens=prefix)


def _renamed(layout: Layout, name: str) -> str:
    for pattern, target in layout.rules:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, target, name)
            break
    if layout.name.startswith("torchvision") and (m := re.match(r"features\.(\d+)\.(.*)", name)):
        return _stage(layout.name, int(m[1]), m[2])
    return name


def _stage(layout: str, number: int, rest: str) -> str:
    """torchvision counts stages and what is between them: 1, 3, 5, 7 and 2, 4, 6."""
    stages = "layers" if layout.endswith("swin") else "stages"
    if number % 2:
        return f"{stages}.{number // 2}.blocks.{rest}"
    return f"{stages}.{number // 2}.downsample.{rest}"


def _dropped(layout: Layout, name: str) -> str | None:
    return next((why for pattern, why in layout.drops if re.fullmatch(pattern, name)), None)


def _joined(state: dict[str, Tensor], record: Record) -> dict[str, Tensor]:
    """Query, key and value as timm's one tensor."""
    for name in [n for n in state if n.endswith((".query.weight", ".query.bias"))]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if missing := [part for part in parts if part not in state]:
            raise ConfigError(f"the file has {name} but not {missing[0]}; it is no whole encoder")
        target = name.replace(".query.", ".qkv.")
        state[target] = torch.cat([state.pop(part) for part in parts])
        for part in parts:
            for source in record.forget(f"backbone.model.{part}"):
                record.use(source, f"backbone.model.{target}")
    return state
