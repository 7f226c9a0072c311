"""A backbone's weights at another image size, as timm resizes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from ark.backbone import Backbone
from ark.errors import ConfigError
from ark.growing.options import as_options
from ark.growing.parts import Match, Taken, Tensors, misfit, shape
from ark.growing.source import Source
from ark.growing.table import Row
from ark.network import Network

# arguments of timm.create_model that change nothing a trained model computes,
TRAINING = {f"{what}drop_rate" for what in ("", "attn_", "proj_", "pos_", "patch_")} | {
    "drop_path_rate",
    "drop_block_rate",
}
# that shapes of tensors tell, or `_check_normalisation` compares,
TOLD = {"img_size", "window_size", "patch_size", "embed_dim", "depth", "depths", "dims"}
TOLD |= {"mlp_ratio", "init_values", "class_token", "reg_tokens", "pretrained_cfg_overlay"}
# and that are a choice of who reads the features
CHOICE = {"global_pool"}


def match_backbone(network: Network, source: Source) -> Match:
    """All of its tensors, of which some may have been resized.

    Raises:
        ConfigError: another model, other arguments that make other features of the same weights,
            another normalisation of images, or tensors that do not fit and that timm does not
            resize.
    """
    backbone, theirs = network.backbone, source.architecture["backbone"]
    name = network.architecture["backbone"]["name"]
    if theirs["name"].split(".")[0] != name.split(".")[0]:
        raise ConfigError(
            f"init_from: {source.where} has the backbone {theirs['name']!r}, but "
            f"model.backbone.name is {name!r}; set {as_options(theirs)}"
        )
    _check_normalisation(backbone, source)
    mine, found = backbone.model.state_dict(), source.part("backbone.model")
    differ = [k for k in mine if k in found and mine[k].shape != found[k].shape]
    if why := misfit(mine, found, but=differ):
        raise ConfigError(
            f"init_from: the backbone of {source.where} {why}; for its own architecture set "
            f"{as_options(theirs)}"
        )
    other = _other_args(network.architecture["backbone"], source)
    sides = f"{theirs['image_size']} px there, {backbone.image_size} here"
    resized = _resized(backbone.model, mine, found, differ, source, sides) if differ else {}
    taken = {f"model.{k}": Taken(resized.get(k, found[k])) for k in mine}
    note = "; ".join([sides] * (theirs["image_size"] != backbone.image_size) + other)
    row = Row("backbone", "taken", len(mine) - len(resized), len(resized), note=note)
    return row, taken


def _other_args(mine: Mapping[str, Any], source: Source) -> list[str]:
    """Arguments that differ by choice, in words.

    Raises:
        ConfigError: others differ, such as Swin's always_partition or a vision transformer's
            num_heads: all tensors fit, but mean something else.
    """
    theirs = source.architecture["backbone"]
    here, there = (dict(backbone.get("args") or {}) for backbone in (mine, theirs))
    names = sorted((here.keys() | there.keys()) - TRAINING - TOLD)
    differ = [n for n in names if _plain(here.get(n)) != _plain(there.get(n))]
    if wrong := [n for n in differ if n not in CHOICE]:
        n = wrong[0]
        raise ConfigError(
            f"init_from: model.backbone.args.{n} is {there.get(n, 'not set')} in {source.where}, "
            f"{here.get(n, 'not set')} here: its weights would give other features; set "
            f"{as_options(theirs)}"
        )
    return [f"{n} {there.get(n, 'not set')} there, {here.get(n, 'not set')} here" for n in differ]


def _plain(value: Any) -> Any:
    """A sequence of either kind as a list; what is not set is timm's own, mostly off."""
    return list(value) if isinstance(value, list | tuple) else value or None


def _check_normalisation(backbone: Backbone, source: Source) -> None:
    for what in ("mean", "std"):
        stated, mine = _stated(source, what), getattr(backbone, what).flatten()
        if stated and not torch.allclose(torch.tensor(stated), mine, atol=1e-4):
            values = [round(value, 5) for value in stated]
            raise ConfigError(
                f"init_from: {source.where} normalises images with {what} {values}, this run's "
                f"backbone with {[round(v, 5) for v in mine.tolist()]}; set "
                f"model.backbone.args: {{pretrained_cfg_overlay: {{{what}: {values}}}}}"
            )


def _stated(source: Source, what: str) -> list[float]:
    """Mean or standard deviation there; of a run's own weights as its backbone took them."""
    if found := getattr(source, what):
        return found
    theirs = source.architecture["backbone"]
    overlay = (theirs.get("args") or {}).get("pretrained_cfg_overlay") or {}
    config = timm.get_pretrained_cfg(theirs["name"])
    return list(overlay.get(what) or getattr(config, what, None) or [])


def _resized(
    model: Any, mine: Tensors, theirs: Tensors, names: list[str], source: Source, sides: str
) -> dict[str, Tensor]:
    """Positional embeddings and tables of windows, by timm's own function for this family.

    Raises:
        ConfigError: the family has none, or it does not bring a tensor to its shape.
    """
    resize = _timm_resize(model)
    with torch.no_grad():
        found = resize(dict(theirs), model) if resize else {}
    for name in names:
        if name not in found or found[name].shape != mine[name].shape:
            raise ConfigError(
                f"init_from: {name} of the backbone is {shape(theirs[name])} in {source.where}, "
                f"{shape(mine[name])} here ({sides}), and timm does not resize it; set "
                f"--data.image_size={source.architecture['backbone']['image_size']} and equal "
                "model.backbone.args"
            )
    return {name: found[name] for name in names}


def _timm_resize(model: Any) -> Callable[[dict[str, Tensor], Any], dict[str, Tensor]] | None:
    """What timm runs over weights before a model of this family loads them."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
