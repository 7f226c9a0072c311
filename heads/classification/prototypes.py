"""A classifier's first weights from the means of its classes. Shape letters: see `ark.types`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ark.types import MulticlassTarget, MultilabelTarget, Target

from .classifiers import CosineLinear

SHARPNESS = 4.0  # logits between a class's mean and the point where it is undecided, about


class ClassMeans:
    """Sums of embeddings by class, batch by batch, and the weights that follow from them.

    Multiclass: weights such that the nearest mean wins (linear) or the mean of the nearest
    direction (cosine; Qi et al. 2018, arXiv 1712.07136). Multilabel: the mean of the positives
    minus that of the negatives, undecided halfway. A class without an example keeps its random
    weights, and so does a label without both positives and negatives.

    Args:
        layer: what gets the weights.
        classes: K.
    """

    def __init__(self, layer: nn.Linear | CosineLinear, classes: int) -> None:
        self.layer, self.classes = layer, classes
        self.cosine = isinstance(layer, CosineLinear)
        # by class; of a multilabel task the positives, then the negatives
        self.sums = torch.zeros(2 * classes, layer.weight.shape[1], dtype=torch.float64)
        self.counts = torch.zeros(2 * classes, dtype=torch.float64)
        self.independent = False

    def add(self, embeddings: Tensor, target: Target) -> None:
        """Adds (B, D) embeddings; a label of at least 0.5 counts as present."""
        vectors = embeddings.detach().cpu().double()
        vectors = F.normalize(vectors, dim=1) if self.cosine else vectors
        if isinstance(target, MultilabelTarget):
            self.independent = True
            present = target.labels >= 0.5
            groups = torch.cat([present & target.known, ~present & target.known], dim=1)
        else:
            assert isinstance(target, MulticlassTarget)
            groups = F.one_hot(target.labels, 2 * self.classes)
        members = groups.cpu().double()
        self.sums += members.T @ vectors
        self.counts += members.sum(dim=0)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the layer's weights and biases."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        seen = self.counts > 0
        if self.independent:
            present, absent = means.split(self.classes)
            direction, middle = present - absent, (present + absent) / 2
            length = direction.square().sum(dim=1, keepdim=True)
            both = seen.view(2, -1).all(dim=0)
        else:
            direction, middle, length, both = self._towards(means[: self.classes], seen)
        chosen = both & (length[:, 0] > 0)
        if isinstance(self.layer, CosineLinear):
            weight = F.normalize(direction, dim=1) * float(self.layer.scale)
        else:
            weight = SHARPNESS * direction / length.clamp(min=torch.finfo(torch.float64).tiny)
        self._set(weight, -(weight * middle).sum(dim=1), chosen)

    def _towards(self, means: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Direction and middle of each class: |x - mean_c|^2 is least where the logit is most."""
        seen = seen[: self.classes]
        if self.cosine:  # the softmax of cosines has no bias that could centre anything
            return means, torch.zeros_like(means), means.square().sum(dim=1, keepdim=True), seen
        centre = means[seen].mean(dim=0) if seen.any() else means[0]
        direction = means - centre
        length = direction.square().sum(dim=1)
        common = length[seen].mean() if seen.any() else length[0]  # one scale, or another would win
        return direction, (means + centre) / 2, common.expand(self.classes, 1), seen

    def _set(self, weight: Tensor, bias: Tensor, chosen: Tensor) -> None:
        for mine, value in ((self.layer.weight, weight), (self.layer.bias, bias)):
            if mine is not None:
                mine[chosen] = value[chosen].to(mine)
