"""The network as one traceable function, from bytes to tensors with names.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ark.errors import ConfigError
from ark.network import Network
from ark.published.config import Facts

log = logging.getLogger("ark")
Program = torch.export.ExportedProgram
INPUT = "images"
VERSION = 1  # of the description


@dataclass
class Description:
    """What a file says of itself, so that it stands alone.

    Args:
        name: of the model.
        which: "teacher" or "student".
        precision: of the weights and of what is computed with them.
        image_size: S, pixels of a side of the square input.
        mean, std: that the graph subtracts and divides by; who runs it must not.
        tasks: key -> dataset, name, kind, classes and what `Head.graph_facts` adds.
        outputs: names, in the graph's order.
        left_out: key of a task that is not in the graph -> why.
    """

    name: str
    which: str
    precision: str
    image_size: int
    mean: list[float]
    std: list[float]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """As names and JSON, for a format's own metadata."""
        values = {"format": VERSION, **asdict(self)}
        return {f"ark.{name}": json.dumps(value) for name, value in values.items()}

    @classmethod
    def read(cls, texts: Mapping[str, str], path: str) -> Description:
        """The inverse of `texts`.

        Raises:
            ConfigError: these are not Ark's, or of a newer format.
        """
        try:
            version = int(json.loads(texts["ark.format"]))
            read = cls(**{f.name: json.loads(texts[f"ark.{f.name}"]) for f in fields(cls)})
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: its metadata are not those of `ark onnx` ({error!r}); expected a file "
                "that it wrote: write it again from the published folder"
            ) from error
        if version > VERSION:
            raise ConfigError(
                f"{path}: format {version}; this Ark reads up to {VERSION}: install a newer one"
            )
        return read


class Graph(nn.Module):
    """(B, 1 or 3, S, S) uint8 in 0..255 or float in 0..1 -> a tuple of float32 tensors.

    Args:
        keys: the tasks whose heads are in it.
    """

    def __init__(self, network: Network, keys: Sequence[str]) -> None:
        super().__init__()
        self.network, self.keys = network.eval(), list(keys)

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """By name: pooled (B, D), embedding (B, D'), and each task's as `Head.graph` gives them."""
        # gray counts three times; written without an `if`, so that one graph takes both
        colour = torch.cat([images] * 3, dim=1).narrow(1, 0, 3)
        if colour.is_floating_point():
            colour = colour.to(self.network.backbone.mean.dtype)
        features = self.network.features(colour, "all")
        assert features.pooled is not None
        assert features.embedding is not None
        found = {"pooled": features.pooled, "embedding": features.embedding}
        for key in self.keys:
            for name, tensor in self.network.head(key).graph(features).items():
                found[f"{key}/{name}" if name else key] = tensor
        return {name: tensor.float() for name, tensor in found.items()}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(images).values())


def trace(graph: Graph, example: Tensor) -> Program:
    """The graph for any batch of at least one image, gray or RGB.

    Args:
        example: (B, 3, S, S), B > 1: torch takes an axis of 1 for a constant.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            graph, (example,), dynamic_shapes=({0: batch, 1: torch.export.Dim.DYNAMIC},)
        )


def exportable(
    network: Network, keys: Sequence[str], example: Tensor, convert: Callable[[Program], Any]
) -> tuple[Graph, Any, dict[str, str]]:
    """The graph of the tasks that can be traced and converted, what `convert` made of it, and of
    the other tasks why not.

    Raises:
        ConfigError: the backbone alone cannot.
    """

    def made(keys: list[str]) -> tuple[Graph, Any]:
        graph = Graph(network, keys)
        return graph, convert(trace(graph, example))

    left: dict[str, str] = {}
    good = [key for key in keys if _runs(network, key, example, left)]
    try:
        return *made(good), left
    except Exception:  # torch's exporters raise of many kinds; each task alone tells which it was
        log.info("torch cannot export all tasks at once; each is tried alone")
    for key in list(good):
        try:
            made([key])
        except Exception as error:
            left[key] = f"torch cannot export its head: {_cause(error)}"
            good.remove(key)
    try:
        return *made(good), left
    except Exception as error:
        backbone: Any = network.architecture["backbone"]
        raise ConfigError(
            f"the backbone {backbone['name']!r} cannot be exported: {_cause(error)}"
        ) from error


def describe(network: Network, facts: Facts, precision: str) -> Description:
    """Without tasks and outputs."""
    backbone = network.backbone
    mean, std = backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()
    return Description(facts.name, facts.which, precision, backbone.image_size, mean, std)


def describe_task(network: Network, key: str) -> dict[str, Any]:
    task = network.tasks[key]
    return {
        "dataset": task.dataset,
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        **network.head(key).graph_facts(),
    }


def _runs(network: Network, key: str, example: Tensor, left: dict[str, str]) -> bool:
    """Whether the head has a graph at all; if not, why is noted in `left`."""
    try:
        with torch.no_grad():
            Graph(network, [key]).named(example)
    except ConfigError as error:
        left[key] = str(error)
    return key not in left


def _cause(error: BaseException) -> str:
    """One line of the first of a chain of errors, which is the particular one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
