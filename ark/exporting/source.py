"""What an exported file is made from: a published folder or a run, and which of its tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ark.checkpoint import load_network
from ark.errors import ConfigError
from ark.network import Network
from ark.published.config import CONFIG, Facts
from ark.published.export import facts_of

LARGEST = 2_000_000_000  # bytes of one protobuf, which an ONNX file is


def source(model: str, allow: Sequence[str] = ()) -> tuple[Network, Facts]:
    """The network in float32 and eval mode.

    Args:
        model: folder that `ark export` wrote, the folder of a run (its teacher), or as `ark.load`
            takes them a hub's owner/name or a name of `ark models`.
        allow: as of `ark.load`; one's own run needs none.

    Raises:
        ConfigError: none of these.
    """
    path = Path(model)
    if (path / CONFIG).is_file() or not path.exists():
        from ark.published.loading import load

        loaded = load(model, allow=allow)
        return loaded.network, loaded.facts
    network = load_network(path)
    return network, facts_of(path, network, "teacher")


def chosen(network: Network, tasks: list[str] | None, model: str) -> list[str]:
    """The keys of the tasks asked for, all if None.

    Raises:
        ConfigError: there is no such task.
    """
    if unknown := [key for key in tasks or [] if key not in network.tasks]:
        raise ConfigError(f"tasks: {unknown[0]!r}; {model} has {list(network.tasks)}")
    return [key for key in network.tasks if tasks is None or key in tasks]


def example_of(network: Network, dtype: torch.dtype) -> Tensor:
    """(2, 3, S, S) zeros."""
    side = network.backbone.image_size
    return torch.zeros(2, 3, side, side, dtype=dtype)


def new_file(file: str, suffix: str, overwrite: bool) -> tuple[Path, Path]:
    """Where the file will be, and where it is written until it has proved itself.

    Raises:
        ConfigError: another suffix, or the file exists.
    """
    path = Path(file)
    if path.suffix != suffix:
        raise ConfigError(f"file: {file!r}; expected a name that ends in {suffix}")
    if path.exists() and not overwrite:
        raise ConfigError(f"file: {file} exists; choose another name, or --overwrite=true")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, path.with_name(f".{path.stem}.{os.getpid()}{suffix}")


def check_size(network: Network, file: str, width: int) -> None:
    """
    Args:
        width: bytes of a weight.

    Raises:
        ConfigError: the weights do not fit into one ONNX file.
    """
    size = sum(p.numel() for p in network.parameters()) * width
    if size > LARGEST:
        raise ConfigError(
            f"{file}: the weights take {size:,} bytes, and one ONNX file holds {LARGEST:,}; "
            "try --precision=float16, fewer --tasks, or `ark pt2`"
        )
