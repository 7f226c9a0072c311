"""Checkpoints that every rank writes its part of: a folder, by torch.distributed.checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ark.integrity import REST, remove
from ark.saving import LAST, PREVIOUS


def write_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Every rank calls it. The folder has its name once all of it is on the disk; the LAST before
    becomes PREVIOUS.

    Args:
        checkpoint: Lightning's, whose tensors may be sharded.
    """
    half = path.with_name(f".{path.name}.tmp")
    if dist.get_rank() == 0:
        remove(half)
    dist.barrier()
    tensors, rest = _split(checkpoint)
    dcp.save(tensors, checkpoint_id=half)  # returns when all ranks have written
    if dist.get_rank() == 0:
        torch.save(rest, half / REST)
        if path.name == LAST and path.exists():
            previous = path.with_name(PREVIOUS)
            remove(previous)
            os.replace(path, previous)
        remove(path)
        os.replace(half, path)
    dist.barrier()


def read_folder(path: Path, like: Callable[[list[str]], Tensor | None]) -> dict[str, Any]:
    """The checkpoint, with each tensor sharded as another one; every rank calls it.

    Args:
        like: keys of a tensor in the checkpoint -> the parameter or buffer that it belongs to.
    """
    found = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {}
    for name, facts in found.items():
        size, dtype = facts.size, facts.properties.dtype  # type: ignore[union-attr]
        model = like(name.split("\n"))
        tensors[name] = torch.zeros(size, dtype=dtype)
        if model is not None and model.shape == size:
            tensors[name] = torch.zeros_like(model)
    dcp.load(tensors, checkpoint_id=path)
    checkpoint = torch.load(path / REST, map_location="cpu", weights_only=True)
    for name, value in tensors.items():
        *keys, last = name.split("\n")
        place = checkpoint
        for key in keys:
            place = place[int(key)] if isinstance(place, list) or key.isdigit() else place[key]
        place[last] = value
    return checkpoint


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by their path, keys joined by line ends (parameters' names hold the rest), and
    the checkpoint without them."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {**checkpoint, "state_dict": {}, "optimizer_states": []}
    for name, value in checkpoint["state_dict"].items():
        tensors[f"state_dict\n{name}"] = value
    for number, saved in enumerate(checkpoint.get("optimizer_states", [])):
        kept: dict[int, dict[str, Any]] = {}
        for index, state in saved["state"].items():
            kept[index] = {n: v for n, v in state.items() if not isinstance(v, Tensor)}
            for n, v in state.items():
                if isinstance(v, Tensor):
                    tensors[f"optimizer_states\n{number}\nstate\n{index}\n{n}"] = v
        rest["optimizer_states"].append({**saved, "state": kept})
    return tensors, rest
