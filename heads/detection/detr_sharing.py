"""Parts of a detector that several tasks use (spec foundation_x.md, Network, L).

The network owns them; a head and its mmdet detector only borrow them, as attributes that torch
does not count as modules of theirs. Copies keep what they borrow: a deep copy of the network
copies each part once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ark.types import ConfigError, FeatureInfo

from .build import build_neck, fit_sine_width
from .config import DetectorPlan

SHARED = ("neck", "encoder", "decoder")
Offer = tuple[str, dict[str, Any], Callable[[], nn.Module]]  # name, recipe, how it is made


class LevelEmbedding(nn.Module):
    """A learned vector for each level; stands in for mmdet's parameter of that use."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, width))

    def __getitem__(self, level: int) -> Tensor:
        return self.weight[level]


def shared_offers(
    plan: DetectorPlan,
    features: FeatureInfo,
    shared: str | None,
    name: str,
    level_norm: bool,
    where: str,
) -> list[Offer]:
    """What a head shares.

    Args:
        shared: None; "neck"; "encoder": also a transformer's encoder and level embeddings
            (Foundation X); "decoder": also its decoder and memory projection (X+).
        name: what the parts' names begin with.

    Raises:
        ConfigError: `shared` is none of these, or the detector has no such part.
    """
    if shared is None:
        return []
    transformer = plan.detector["type"] in ("DINO", "DeformableDETR")
    choices = SHARED if transformer else SHARED[:2]
    if shared not in choices:
        raise ConfigError(
            f"{where}: expected shared to be one of {list(choices)} or null with detector "
            f"{plan.detector['type']!r}, but got {shared!r}"
        )
    neck = {"neck": plan.neck, "level_norm": level_norm, "levels": list(plan.levels)}

    def make_neck() -> nn.ModuleDict:
        return nn.ModuleDict({"neck": build_neck(plan, features, level_norm, where)})

    if shared == "neck" or not transformer:
        return [(f"{name}_neck", neck, make_neck)]
    detector = plan.detector
    levels = detector.get("num_feature_levels", 4)
    encoder = {**neck, "encoder": detector["encoder"], "num_feature_levels": levels}

    def make_encoder() -> nn.ModuleDict:
        return nn.ModuleDict({**dict(make_neck()), **_encoder(detector["encoder"], levels)})

    offers: list[Offer] = [(f"{name}_encoder", encoder, make_encoder)]
    if shared == "decoder":
        keys = ("type", "decoder", "as_two_stage")
        recipe = {key: detector.get(key) for key in keys}
        offers.append((f"{name}_decoder", recipe, lambda: _decoder(recipe)))
    return offers


def borrow(owner: nn.Module, name: str, part: nn.Module) -> None:
    """Makes `owner.name` mean `part`, in place of a module or parameter of its own."""
    owner._modules.pop(name, None)
    owner._parameters.pop(name, None)
    owner.__dict__[name] = part


def _encoder(config: dict[str, Any], levels: int) -> nn.ModuleDict:
    from mmdet.models.layers import DeformableDetrTransformerEncoder

    encoder = DeformableDetrTransformerEncoder(**_own(config))
    _start(encoder)
    embedding = LevelEmbedding(levels, encoder.embed_dims)
    return nn.ModuleDict({"encoder": encoder, "level_embed": embedding})


def _decoder(recipe: dict[str, Any]) -> nn.ModuleDict:
    """A decoder and what turns the encoder's tokens into proposals and these into queries."""
    from mmdet.models.layers import DeformableDetrTransformerDecoder, DinoTransformerDecoder

    dino = recipe["type"] == "DINO"
    cls = DinoTransformerDecoder if dino else DeformableDetrTransformerDecoder
    decoder = cls(**_own(recipe["decoder"]))
    width = decoder.embed_dims
    parts = nn.ModuleDict({"decoder": decoder})
    if recipe["as_two_stage"]:
        parts["memory_trans_fc"] = nn.Linear(width, width)
        parts["memory_trans_norm"] = nn.LayerNorm(width)
        if not dino:
            parts["pos_trans_fc"] = nn.Linear(2 * width, 2 * width)
            parts["pos_trans_norm"] = nn.LayerNorm(2 * width)
    fit_sine_width(parts)
    _start(decoder)
    for part in parts.values():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    return parts


def _own(config: dict[str, Any]) -> Any:
    from mmengine import ConfigDict

    return ConfigDict(copy.deepcopy(config))


def _start(coder: nn.Module) -> None:
    """As mmdet's detection transformers start theirs."""
    from mmcv.ops import MultiScaleDeformableAttention

    for parameter in coder.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for module in coder.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.init_weights()
