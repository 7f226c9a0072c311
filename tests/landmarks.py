"""A head of a kind that Ark ships none for: what a user would write, in one file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ark.drawing import colour, show_image
from ark.head import Comparable, Head
from ark.types import FeatureInfo, Features, PointsPrediction, PointsTarget, TaskSpec
from heads.weighted import WeightedMetric


class LandmarkHead(Head):
    """Points as the centres of mass of heat maps (soft-argmax) on the coarsest map."""

    kinds = frozenset({"points"})
    main_metric = "hits"
    compared = ("points",)

    def __init__(self, task: TaskSpec, features: FeatureInfo) -> None:
        super().__init__(task, features)
        self.heat = nn.Conv2d(features.channels[2], len(task.classes), 1)
        self.stride = features.strides[2]

    def forward(self, features: Features, target: Any = None, like: Any = None) -> Tensor:
        """(B, K, 2) pixels."""
        heat = self.heat(features.maps[2])
        share = heat.flatten(2).softmax(dim=2).view_as(heat)
        rows, columns = (
            torch.arange(n, device=heat.device) * self.stride + self.stride / 2
            for n in heat.shape[2:]
        )
        x, y = (share.sum(dim=2) * columns).sum(dim=2), (share.sum(dim=3) * rows).sum(dim=2)
        return torch.stack([x, y], dim=2)

    def loss(self, output: Tensor, target: Any) -> dict[str, Tensor]:
        assert isinstance(target, PointsTarget)
        distance = (output - target.points).abs().sum(dim=2) / self.info.image_size
        return {"l1": (distance * target.known).sum() / target.known.sum().clamp(min=1)}

    def predict(self, output: Tensor) -> PointsPrediction:
        return PointsPrediction(output, torch.ones_like(output[..., 0]))

    def comparable(self) -> dict[str, Comparable]:
        return {"points": lambda features, output: output / self.info.image_size}

    def metrics(self, task=None) -> WeightedMetric:
        return Hits()

    def draw(self, axes, image, shown, index, truth) -> None:
        show_image(axes, image.permute(1, 2, 0).numpy())
        for k, (x, y) in enumerate(shown.points[index].tolist()):
            axes.plot(x, y, "o", color=colour(k))


class Hits(WeightedMetric):
    """The share of known points that are found within 10 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", [], dist_reduce_fx="cat")

    def see(self, prediction, target) -> int:
        near = (prediction.points - target.points).norm(dim=2) <= 10
        self.found.append(torch.where(target.known, near.float(), torch.nan).nanmean(dim=1))
        return len(near)

    def evidence(self):
        return self.gathered("found")

    def score(self, evidence, weights, brief=False):
        known = ~torch.isnan(torch.from_numpy(evidence)).numpy()
        total = weights[known].sum()
        hits = (evidence[known] * weights[known]).sum() / total if total else float("nan")
        return {"hits": float(hits)}
