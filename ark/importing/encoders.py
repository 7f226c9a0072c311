"""An encoder's tensor names, as others spell them, to those of timm.

The layout is found by looking at the keys. Names that no rule changes stay: they are timm's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ark.errors import ConfigError
from ark.importing.layouts import CLASSIFIER, PRETEXT, layout_of, renamed, why_dropped
from ark.importing.record import Record

OUTSIDE = "outside the encoder"
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
        if layout and (why := why_dropped(layout, name)):
            record.drop(prefix + name, why)
            continue
        target = renamed(layout, name) if layout else name
        if old:
            target = re.sub(
                r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", target
            )
        if target in found:
            raise ConfigError(f"{prefix}{name}: {target} is in the file twice; --drop=ONE_OF_THEM")
        found[target] = tensor.flatten() if target.endswith(".gamma") else tensor
        record.use(prefix + name, f"backbone.model.{target}")
    return _joined(found, record)


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
