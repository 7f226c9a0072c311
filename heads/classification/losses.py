"""Losses of classification, each a weighted mean over what is known.

A soft label t is the chance that the class is present: it costs t times what a present class costs
and 1 - t times what an absent one does, in every loss here. Shape letters: see `ark.types`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ark.distributed import ranks
from ark.types import ConfigError, MulticlassTarget, MultilabelTarget, Target


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy. (B, K) -> (B, K), as the next two."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Lin et al. 2017, arXiv 1708.02002, equation 5; `alpha` -1 leaves alpha out."""
    # torchvision's is linear in a label of 0 or 1 only
    present, absent = (
        sigmoid_focal_loss(logits, torch.full_like(labels, whole), alpha, gamma)
        for whole in (1.0, 0.0)
    )
    return labels * present + (1 - labels) * absent


def asymmetric(
    logits: Tensor,
    labels: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> Tensor:
    """Ridnik et al. 2021, arXiv 2009.14119, equations 4 to 7."""
    p = logits.sigmoid()
    present = (1 - p) ** gamma_pos * F.softplus(-logits)
    shifted = (p - clip).clamp(min=0)
    # without a shift 1 - p can be zero, whose logarithm is not finite
    certain = -torch.log1p(-shifted) if clip else F.softplus(logits)
    return labels * present + (1 - labels) * shifted**gamma_neg * certain


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Sum over the images. `labels` (B,) int64, `weights` (K,)."""
    return F.cross_entropy(
        logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum"
    )


def softmax_focal(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, gamma: float = 2.0
) -> Tensor:
    """arXiv 1708.02002 with softmax; `weights` are its alpha. Sum over the images."""
    logs = logits.log_softmax(dim=1)
    classes = logits.shape[1]
    shares = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return -(weights * shares * (1 - logs.exp()) ** gamma * logs).sum()


def one_against_rest(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """A yes/no question for each class, as MICCAI's Ark asks of all tasks (spec ark.md, losses):
    the mean of their binary cross-entropies. Sum over the images, each weighed by its class."""
    classes = logits.shape[1]
    answers = F.one_hot(labels, classes).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return (bce(logits, answers).mean(dim=1) * weights[labels]).sum()


def coral(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """arXiv 1901.07884, equation 5: the sum over "is it beyond class k?". (B, K - 1) -> losses
    (B, 1) and whether each counts."""
    terms, _ = corn(logits, labels, smoothing)
    return terms.sum(dim=1, keepdim=True), torch.ones_like(labels[:, None])


def corn(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """arXiv 2111.08851, equation 6: "is it beyond class k?" is asked of who reached k. (B, K - 1)
    -> losses (B, K - 1) and whether each counts."""
    steps = torch.arange(logits.shape[1], device=logits.device)
    beyond = (labels[:, None] > steps).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return bce(logits, beyond), (labels[:, None] >= steps).to(logits.dtype)


# The first of each kind is what it has where nothing is said.
LOSSES: dict[str, dict[str, Callable[..., Any]]] = {
    "multilabel": {"bce": bce, "focal": focal, "asymmetric": asymmetric},
    "multiclass": {"cross_entropy": cross_entropy, "focal": softmax_focal, "bce": one_against_rest},
    "ordinal": {"coral": coral, "corn": corn},
}


class ClassLoss(nn.Module):
    """Mean of a loss over the known labels (multilabel) or images, each weighed by its class.

    Args:
        name: of LOSSES for the kind; None: the first.
        loss_args: the loss's own arguments.
        weights: (K,), see `class_weights`.
        smoothing: the share of every label that is spread evenly, over present and absent or, for
            multiclass, over the classes.
        where: what this configures, for messages.

    Raises:
        ConfigError: an unknown loss or argument, or a value out of range.
    """

    weights: Tensor

    def __init__(
        self,
        kind: str,
        name: str | None,
        loss_args: Mapping[str, float] | None,
        weights: Tensor,
        smoothing: float,
        where: str,
    ) -> None:
        super().__init__()
        losses = LOSSES[kind]
        self.name = next(iter(losses)) if name is None else name
        if self.name not in losses:
            raise ConfigError(
                f"{where}: expected loss to be one of {list(losses)} for kind {kind!r}, but got "
                f"{name!r}"
            )
        if not 0 <= smoothing < 1:
            raise ConfigError(
                f"{where}: expected label_smoothing in [0, 1), but got {smoothing!r}; 0 switches "
                "it off"
            )
        own = dict(loss_args or {})
        _check_arguments(losses[self.name], self.name, own, where)
        self.each, self.smoothing = partial(losses[self.name], **own), smoothing
        # from the recipe, not from a checkpoint
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """A scalar; 0 with a gradient of zero where nothing is known or weighs anything."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # at least
        weights = self.weights.to(logits.dtype)
        if isinstance(target, MultilabelTarget):
            labels = target.labels.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
            return _mean(self.each(logits, labels), weights * target.known)
        assert isinstance(target, MulticlassTarget)
        of_image = weights[target.labels]
        if self.name in LOSSES["ordinal"]:
            terms, counts = self.each(logits, target.labels, self.smoothing)
            return _mean(terms, counts * of_image[:, None])
        total = self.each(logits, target.labels, weights, self.smoothing)
        return total / _of_all(of_image.sum())


def _mean(terms: Tensor, weights: Tensor) -> Tensor:
    # where, not only a product: nothing unknown may reach the sum, not even as 0 * infinity
    return torch.where(weights > 0, terms * weights, 0.0).sum() / _of_all(weights.sum())


def _of_all(weight: Tensor) -> Tensor:
    """What to divide this rank's sum by; 1 where nothing weighs anything on any rank."""
    weight = ranks.mean(weight)
    return torch.where(weight > 0, weight, 1.0)


def _check_arguments(
    loss: Callable[..., Any], name: str, given: Mapping[str, Any], where: str
) -> None:
    parameters = inspect.signature(loss).parameters.values()
    accepted = [p.name for p in parameters if p.default is not inspect.Parameter.empty]
    for argument, value in given.items():
        here = f"{where}: loss_args.{argument}"
        if argument not in accepted:
            raise ConfigError(f"{here}: loss {name!r} has no such argument; it accepts {accepted}")
        # between 0 and 1 the slope of p ** gamma has no limit, and a certain prediction gives NaN
        if argument.startswith("gamma") and not (value == 0 or value >= 1):
            raise ConfigError(f"{here}: expected 0 or at least 1, but got {value!r}")
        if argument == "alpha" and not (value == -1 or 0 <= value <= 1):
            raise ConfigError(
                f"{here}: expected the weight of present classes, in [0, 1], or -1 for none, but "
                f"got {value!r}"
            )
        if argument == "clip" and not 0 <= value < 1:
            raise ConfigError(f"{here}: expected a probability in [0, 1), but got {value!r}")


def class_weights(
    given: Sequence[float] | Mapping[str, float] | None, classes: Sequence[str], where: str
) -> Tensor:
    """(K,) float32. `given` by class, or by name for some classes; the others weigh 1.

    Raises:
        ConfigError: an unknown class, a list of another length, or a weight that is no weight.
    """
    named = given if isinstance(given, Mapping) else {}
    if unknown := [name for name in named if name not in classes]:
        raise ConfigError(
            f"{where}: class_weights names {unknown[0]!r}, but the task's classes are "
            f"{list(classes)}"
        )
    if given is None or isinstance(given, Mapping):
        given = [named.get(name, 1.0) for name in classes]
    if len(given) != len(classes):
        raise ConfigError(
            f"{where}: expected {len(classes)} class_weights, one for each of {list(classes)}, but "
            f"got {len(given)}"
        )
    if not all(isinstance(value, int | float) for value in given):
        raise ConfigError(f"{where}: expected class_weights to be numbers, but got {given}")
    weights = torch.tensor([float(value) for value in given])
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.any()):
        raise ConfigError(
            f"{where}: expected class_weights >= 0 and one above 0, but got {weights.tolist()}"
        )
    return weights
