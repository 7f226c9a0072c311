"""From a classifier's logits to probabilities of classes, and back; from those to decisions.

"sigmoid": K logits, one for each independent label. "softmax": K logits, one class an image.
The ordinal two have K - 1 logits a_k, in the order of the classes: "coral" P(y > k) =
sigmoid(a_k) with falling a_k (Cao et al. 2020, arXiv 1901.07884, equation 4); "corn"
P(y > k | y >= k) = sigmoid(a_k) (Shi et al. 2021, arXiv 2111.08851, equation 3). Shape letters:
see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny
ONE = 1 - 2.0**-24  # the nearest to 1 that a float32 can say


@dataclass(frozen=True)
class Link:
    """Both directions; `logits` undoes `probabilities` as far as float32 probabilities can tell
    (softmax: but for a number added to each logit of a row)."""

    probabilities: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]


def chosen(probabilities: Tensor, kind: str, thresholds: Tensor) -> Tensor:
    """(B, K) bool: which classes the probabilities speak for.

    multilabel: those that reach their threshold. multiclass: the most probable one. ordinal: the
    median, as CORAL and CORN decide, which has the least expected distance to the truth.
    """
    if kind == "multilabel":
        return probabilities >= thresholds
    if kind == "ordinal":
        best = (probabilities.cumsum(dim=1)[:, :-1] < 0.5).sum(dim=1)
    else:
        best = probabilities.argmax(dim=1)
    return F.one_hot(best, probabilities.shape[1]).bool()


def _from_sigmoid(probabilities: Tensor) -> Tensor:
    p = probabilities.clamp(TINY, ONE)
    return p.log() - torch.log1p(-p)


def _coral(logits: Tensor) -> Tensor:
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)): exact for rare classes
    end = torch.full_like(logits[:, :1], torch.inf)
    above, below = torch.cat([end, logits], dim=1), torch.cat([logits, -end], dim=1)
    return above.sigmoid() * (-below).sigmoid() * -torch.expm1(below - above)


def _from_coral(probabilities: Tensor) -> Tensor:
    beyond, _ = _beyond(probabilities)
    within = probabilities.cumsum(dim=1)[:, :-1].clamp(min=TINY)
    return beyond.log() - within.log()


def _corn(logits: Tensor) -> Tensor:
    reached = _running_product(logits.sigmoid())
    ones = torch.ones_like(reached[:, :1])
    stopped = torch.cat([(-logits).sigmoid(), ones], dim=1)
    return torch.cat([ones, reached], dim=1) * stopped


def _running_product(shares: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        return shares.cumprod(dim=1)
    products = list(shares.split(1, dim=1))  # ONNX has no cumprod
    for n in range(1, len(products)):
        products[n] = products[n - 1] * products[n]
    return torch.cat(products, dim=1)


def _from_corn(probabilities: Tensor) -> Tensor:
    beyond, here = _beyond(probabilities)
    return beyond.log() - here.log()


def _beyond(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K - 1) each: P(y > k) and P(y = k), neither of them zero."""
    p = probabilities.clamp(min=TINY)
    return p.flip(1).cumsum(dim=1).flip(1)[:, 1:], p[:, :-1]


LINKS = {
    "sigmoid": Link(torch.sigmoid, _from_sigmoid),
    "softmax": Link(lambda z: z.softmax(dim=1), lambda p: p.clamp(min=TINY).log()),
    "coral": Link(_coral, _from_coral),
    "corn": Link(_corn, _from_corn),
}
