"""A published model's three files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ark.network import Network
from ark.published.card import card
from ark.published.config import CARD, WEIGHTS, Facts, sha256, write_config


def write_model(folder: Path, network: Network, facts: Facts) -> Path:
    """Writes weights, config.json and model card; what `facts` says of the weights is made true.

    Args:
        facts: precision is that of the file, parts what of the network is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone = facts.parts == "backbone"
    module: nn.Module = network.backbone.model if backbone else network
    architecture = dict(network.architecture)
    if backbone:
        architecture |= {"tasks": [], "projector": None}
    dtype = getattr(torch, facts.precision)
    save_file(_stored(module.state_dict(), dtype), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets none but the owner read it
    written = replace(
        facts,
        architecture=architecture,
        mean=network.backbone.mean.flatten().tolist(),
        std=network.backbone.std.flatten().tolist(),
        sha256=sha256(folder / WEIGHTS),
    )
    (folder / CARD).write_text(card(written))
    write_config(folder, written, timm_keys(network) if backbone else None)
    return folder


def timm_keys(network: Network) -> dict[str, Any]:
    """What `timm.create_model("local-dir:...")` and "hf-hub:..." read."""
    backbone = network.architecture["backbone"]
    side = network.backbone.image_size
    args = dict(backbone.get("args") or {})
    args.pop("pretrained_cfg_overlay", None)  # said in pretrained_cfg; timm takes it from there
    return {
        "architecture": backbone["name"].split(".")[0],
        "num_classes": 0,
        "num_features": network.backbone.model.num_features,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": bool(network.backbone.model.pretrained_cfg.get("fixed_input_size")),
            "mean": network.backbone.mean.flatten().tolist(),
            "std": network.backbone.std.flatten().tolist(),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "num_classes": 0,
        },
        "model_args": args,
    }


def only(network: Network, tasks: Sequence[str]) -> Network:
    """A network with the heads of some tasks only, and the same weights.

    Raises:
        ConfigError: a head needs another one that is not among them.
    """
    chosen = [t for t in network.architecture["tasks"] if f"{t['dataset']}/{t['name']}" in tasks]
    small = Network.from_architecture({**network.architecture, "tasks": chosen})
    state = network.state_dict()
    small.load_state_dict({name: state[name] for name in small.state_dict()})
    return small.eval()


def _stored(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in state.items()
    }
