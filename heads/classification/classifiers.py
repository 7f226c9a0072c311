"""The layers that turn an embedding into logits. Shape letters: see `ark.types`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSIFIERS = ("linear", "mlp", "cosine")
SCALE = 10.0  # where Gidaris and Komodakis start


class CosineLinear(nn.Module):
    """Logits are the learnt scale times the cosine of embedding and weight (Gidaris and Komodakis
    2018, arXiv 1804.09458, section 3.2).

    Args:
        bias: adds a number to each logit, which yes/no labels need: a rare one is improbable
            whatever its cosine.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear does
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        scaled = F.normalize(embedding, dim=1) * self.scale
        return F.linear(scaled, F.normalize(self.weight, dim=1), self.bias)


class Cutpoints(nn.Module):
    """One number an image -> K - 1 logits that never rise: CORAL's shared weight and its biases
    (arXiv 1901.07884, section 3.3). There the biases are in order where the loss is least, here
    always, so that no class ever gets a negative probability."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        start = torch.full((classes - 1,), math.log(math.expm1(1.0)))  # one apart
        start[0] = classes / 2 - 1  # zero is in the middle of them
        self.steps = nn.Parameter(start)

    def forward(self, score: Tensor) -> Tensor:
        """(B, 1) -> (B, K - 1)."""
        falls = torch.cat([self.steps[:1], -F.softplus(self.steps[1:])])
        return score + falls.cumsum(dim=0)


def hidden_layer(classifier: str, inputs: int, width: int) -> nn.Module:
    """What comes before the last layer: nothing, but for "mlp"."""
    if classifier != "mlp":
        return nn.Identity()
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True))


def last_layer(classifier: str, link: str, inputs: int, classes: int) -> CosineLinear | nn.Linear:
    """The layer whose weights are the classes' directions.

    Args:
        link: see `heads.classification.links`; says how many logits there are and whether they
            need a bias.
    """
    outputs = {"coral": 1, "corn": classes - 1}.get(link, classes)
    if classifier == "cosine":  # for softmax the paper has none; CORAL's are the cutpoints
        return CosineLinear(inputs, outputs, bias=link in ("sigmoid", "corn"))
    return nn.Linear(inputs, outputs, bias=link != "coral")
