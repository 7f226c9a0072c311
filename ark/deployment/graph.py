"""What a runtime can compute of a network: one function of a batch, with a fixed list of outputs.

Normalisation is inside, so that a file takes the bytes of an image. Boxes are left out: how many
there are differs by image, and what removes doubles (NMS, a threshold) is not part of a graph whose
outputs have fixed shapes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ark.errors import ConfigError
from ark.network import Network
from ark.published.model import Model
from ark.types import ClassPrediction, MaskPrediction, ValuesPrediction

FEATURES = "features"  # the name of the pooled, projected vector
INPUT = "images"
_EXPORTED = {
    "multilabel": "probabilities",
    "multiclass": "probabilities",
    "ordinal": "probabilities",
    "segmentation": "probabilities",
    "values": "values",
}


class Graph(nn.Module):
    """(B, 3, S, S) uint8 -> a tensor an output, in the order of `names`.

    Attributes:
        names: of the outputs: "features" (B, D'), then the tasks: (B, K) probabilities or values,
            (B, K, S, S) probabilities of masks.
    """

    def __init__(self, network: Network, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = [FEATURES, *tasks]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network.features(images, "all")
        assert features.embedding is not None
        found = [features.embedding]
        for key in self.names[1:]:
            prediction = self.network.head(key).predict_features(features)
            if isinstance(prediction, ClassPrediction | MaskPrediction):
                found.append(prediction.probabilities)
            else:
                assert isinstance(prediction, ValuesPrediction)
                found.append(prediction.values)
        return tuple(found)


def exportable(model: Model, tasks: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Which tasks a graph can have, and of the others why not.

    Args:
        tasks: asked for by name, which must be possible; None: all that are.

    Raises:
        ConfigError: an unknown task, or one asked for by name that cannot be exported.
    """
    good, left = [], {}
    for key, task in model.tasks.items():
        if task.kind not in _EXPORTED:
            left[key] = f"how many {task.kind} outputs an image has is not fixed"
        elif model.network.head(key).guide is not None:
            left[key] = "it reads predicted boxes, whose number is not fixed"
        else:
            good.append(key)
    for key in tasks or []:
        if key not in good:
            why = left.get(key, f"no task of this model; it has {list(model.tasks)}")
            raise ConfigError(f"tasks: {key!r} cannot be exported: {why}")
    return [key for key in good if tasks is None or key in tasks], left


def description(model: Model, names: Sequence[str]) -> dict[str, str]:
    """What stands in a file beside its weights, so that it needs no other: all values are text."""
    tasks: list[dict[str, Any]] = [
        {
            "task": key,
            "kind": model.tasks[key].kind,
            "classes": list(model.tasks[key].classes),
            "exclusive": bool(model.network.head(key).exclusive),
        }
        for key in names
        if key != FEATURES
    ]
    return {
        "ark": "1",
        "name": model.facts.name,
        "image_size": str(model.image_size),
        "input": "(B, 3, S, S) uint8, the whole image resized without regard to its aspect ratio",
        "tasks": json.dumps(tasks),
        "sha256": model.facts.sha256,
    }
