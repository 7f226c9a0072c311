"""A published network with names on all that goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ark.errors import ConfigError
from ark.network import Network
from ark.published.config import Facts
from ark.published.images import Input, as_input
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    Features,
    MaskPrediction,
    PointsPrediction,
    Prediction,
    TaskSpec,
    ValuesPrediction,
)


class Model(nn.Module):
    """What `ark.load` gives: `model(images)` and `model.features(images)`.

    Images are what `ark.published.images.as_input` takes: a tensor, or paths, PIL images and
    arrays of any size. They are resized and normalised here. Shape letters: see `ark.types`.

    Attributes:
        network: the torch module within, for what is not offered here.
        facts: what config.json says: architecture, recipe, data, metrics.
        tasks: the tasks by `<dataset>/<task>`, with their classes.
    """

    def __init__(self, network: Network, facts: Facts) -> None:
        super().__init__()
        self.network, self.facts = network, facts
        self.eval()

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        return self.network.tasks

    @property
    def image_size(self) -> int:
        """Pixels of a side of the square input."""
        return self.network.backbone.image_size

    @property
    def device(self) -> torch.device:
        return self.network.backbone.mean.device

    @torch.no_grad()
    def forward(self, images: Any, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Every task's prediction, by its names.

        Args:
            tasks: which; all if not given. One computes only what its head reads.

        Returns:
            By task, in this order of kinds: classes and values {name: (B,)}; masks {name:
            probabilities (B, H, W), or of a list of pictures B times (H, W)} at the images' own
            size; boxes {"boxes": B times (N, 4) xyxy in pixels of the images, "scores": B times
            (N,), "labels": B lists of names}; points {name: (B, 3) x, y in pixels of the images,
            and score}.

        Raises:
            ConfigError: no such task, or images that cannot be read.
        """
        given = self._input(images)
        return {key: self._named(key, p, given) for key, p in self._run(given, tasks).items()}

    def predict(self, images: Any, tasks: Sequence[str] | None = None) -> dict[str, Prediction]:
        """As `forward`, as the tensors that heads give, in pixels of the network's input."""
        with torch.no_grad():
            return self._run(self._input(images), tasks)

    def features(self, images: Any) -> Features:
        """What the heads read: `pooled` (B, D) after the backbone's final norm, `embedding` (B, D')
        of the projector (`pooled` where there is none), `maps` (B, C, h, w), finest first.

        With gradients, unless the caller switches them off: for training on top.
        """
        return self.network.features(self._input(images).pixels, "all")

    def _run(self, given: Input, tasks: Sequence[str] | None) -> dict[str, Prediction]:
        if tasks is None:
            return self.network(given.pixels)
        asked = [tasks] if isinstance(tasks, str) else tasks
        if unknown := [key for key in asked if key not in self.tasks]:
            raise ConfigError(f"tasks: {unknown[0]!r}; this model has {list(self.tasks)}")
        return {key: self.network.predict(key, given.pixels) for key in asked}

    def _input(self, images: Any) -> Input:
        given = as_input(images, self.image_size)
        pixels = given.pixels.to(self.device)
        if pixels.is_floating_point():
            pixels = pixels.to(self.network.backbone.mean.dtype)
        return Input(pixels, given.sizes, given.alike)

    def _named(self, key: str, prediction: Prediction, given: Input) -> dict[str, Any]:
        names = self.tasks[key].classes
        if isinstance(prediction, ClassPrediction):
            return dict(zip(names, prediction.probabilities.unbind(1), strict=True))
        if isinstance(prediction, ValuesPrediction):
            return dict(zip(names, prediction.values.unbind(1), strict=True))
        if isinstance(prediction, MaskPrediction):
            return self._masks(names, prediction.probabilities, given)
        if isinstance(prediction, BoxPrediction):
            return self._boxes(names, prediction, given)
        assert isinstance(prediction, PointsPrediction)
        scale = self._scale(given).to(prediction.points)
        points = torch.cat([prediction.points * scale[:, None], prediction.scores[..., None]], -1)
        return dict(zip(names, points.unbind(1), strict=True))

    def _masks(self, names: Sequence[str], masks: Tensor, given: Input) -> dict[str, Any]:
        sized = [
            F.interpolate(mask[None], size, mode="bilinear", align_corners=False)[0]
            for mask, size in zip(masks, given.sizes, strict=True)
        ]
        if given.alike:
            return dict(zip(names, torch.stack(sized).unbind(1), strict=True))
        return {name: [mask[number] for mask in sized] for number, name in enumerate(names)}

    def _boxes(self, names: Sequence[str], found: BoxPrediction, given: Input) -> dict[str, Any]:
        scales = self._scale(given).repeat(1, 2)
        return {
            "boxes": [b * s.to(b) for b, s in zip(found.boxes, scales, strict=True)],
            "scores": found.scores,
            "labels": [[names[label] for label in labels.tolist()] for labels in found.labels],
        }

    def _scale(self, given: Input) -> Tensor:
        """(B, 2): pixels of the caller's images, x and y, in one of the network's input."""
        return torch.tensor([[w, h] for h, w in given.sizes]) / self.image_size

    # -- as on a hub ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Model:
        """As `ark.load`."""
        from ark.published.loading import load

        return load(path, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the three files of a published model."""
        from ark.published.writing import write_model

        return write_model(Path(folder), self.network, self.facts)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the three files; returns their address. See `ark.published.hub.push`."""
        from ark.published.hub import push

        return push(self, repo_id, **options)
