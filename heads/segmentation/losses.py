"""Losses of masks: sums of the usual terms, for truth that is partly missing or not unanimous.

A class that was not annotated on an image is not background: its logits get no gradient there.
Shape letters: see `ark.types`; C channels of the logits: K, or in mode "multiclass" 1 + K with the
background first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import (
    BINARY_MODE,
    MULTICLASS_MODE,
    LovaszLoss,
)
from torch import Tensor

from ark.distributed import ranks
from ark.types import ConfigError, SegmentationTarget

from .exclusive import majority, without_overlap

NOT_ANNOTATED = 255
TINY = 1e-7
IMPOSSIBLE = -1e4  # as a logit; minus infinity times a truth of 0 would be NaN


@dataclass
class Masks:
    """What each term reads, of B images."""

    logits: Tensor  # (B, C, H, W) float32; multiclass: `IMPOSSIBLE` where not known
    truth: Tensor  # (B, C, H, W) in [0, 1]; 0 where not known
    known: Tensor  # (B, C) bool
    exclusive: bool

    def probabilities(self) -> Tensor:
        return self.logits.softmax(dim=1) if self.exclusive else self.logits.sigmoid()

    def surprise(self) -> Tensor:
        """Cross entropy of each pixel: (B, C, H, W), or (B, 1, H, W) over exclusive classes."""
        if self.exclusive:
            return -(self.truth * self.logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
        return F.binary_cross_entropy_with_logits(self.logits, self.truth, reduction="none")

    def mean(self, pixels: Tensor) -> Tensor:
        """The mean over what is known of such a map."""
        known = self.known[:, :1] if self.exclusive else self.known
        # of few images on many ranks the mean count may be a fraction
        count = ranks.mean(known.sum())
        return (pixels.mean(dim=(2, 3)) * known).sum() / torch.where(count > 0, count, 1)


def _cross_entropy(masks: Masks) -> Tensor:
    return masks.mean(masks.surprise())


def _focal(masks: Masks, gamma: float = 2.0) -> Tensor:
    surprise = masks.surprise()
    return masks.mean(torch.expm1(-surprise).neg() ** gamma * surprise)


def _dice(masks: Masks) -> Tensor:
    return _tversky(masks, 0.5, 0.5)


def _tversky(masks: Masks, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """Of the whole batch, over all ranks; smp's cannot add up over ranks before it divides."""
    known = masks.known[..., None, None]
    p, t = masks.probabilities() * known, masks.truth * known
    sums = [each.sum(dim=(0, 2, 3)) for each in (p, t, (p - t).abs())]
    predicted, present, apart = ranks.total(torch.stack(sums))
    hit = (predicted + present - apart) / 2  # arXiv 2303.16296: also right for soft truth
    false, missed = predicted - hit, present - hit
    score = hit / (hit + alpha * false + beta * missed).clamp(min=TINY)
    annotated = ranks.mean(masks.known.any(dim=0).float()) > 0
    return ((1 - score) * (present > 0)).sum() / annotated.sum().clamp(min=1)


def _lovasz(masks: Masks) -> Tensor:
    if not masks.known.any():
        return 0 * masks.logits.sum()
    if masks.exclusive:
        chosen = majority(masks.truth[:, 1:], exclusive=True).long()
        numbers = torch.arange(1, 1 + chosen.shape[1], device=chosen.device)
        labels = (chosen * numbers[:, None, None]).sum(dim=1)
        labels = labels.masked_fill(~masks.known[:, :1, None], NOT_ANNOTATED)
        return LovaszLoss(MULTICLASS_MODE, ignore_index=NOT_ANNOTATED)(masks.logits, labels)
    labels = majority(masks.truth).long()
    labels = labels.masked_fill(~masks.known[..., None, None], NOT_ANNOTATED)
    hinge = LovaszLoss(BINARY_MODE, ignore_index=NOT_ANNOTATED)
    each = [hinge(masks.logits[:, k], labels[:, k]) for k in range(labels.shape[1])]
    return torch.stack(each).sum() / masks.known.any(dim=0).sum()


_SHARED: dict[str, Callable[..., Tensor]] = {
    "dice": _dice,
    "focal": _focal,
    "lovasz": _lovasz,
    "tversky": _tversky,
}
TERMS = {
    "multilabel": {"bce": _cross_entropy, **_SHARED},
    "multiclass": {"ce": _cross_entropy, **_SHARED},
}
OPTIONS = {"focal": {"gamma": 2.0}, "tversky": {"alpha": 0.3, "beta": 0.7}}


class MaskLoss:
    """A weighted sum of terms.

    - `dice`: 1 - soft Dice of the batch, the mean over classes, of which those without a positive
      pixel count 0 (as smp's). With soft truth the form of arXiv 2303.16296, whose optimum is the
      truth.
    - `tversky`: the same with `alpha` on false positives and `beta` on false negatives
      (arXiv 1706.05721); 0.5 and 0.5 are Dice.
    - `bce`, or in mode multiclass `ce`: cross entropy, the mean over known pixels.
    - `focal`: cross entropy CE times (1 - exp(-CE)) ** `gamma` (arXiv 1708.02002; like smp's, at
      its least where the probability is the truth, also a soft one).
    - `lovasz`: the Lovász hinge of each class, or the Lovász softmax over those present (arXiv
      1705.08790). It knows no soft truth: a pixel belongs to a class that at least half of the
      raters gave it. The mean over ranks of the losses of their images; all others are those of
      the whole batch.

    In mode multiclass the background is a class like the others. Where masks overlap the last
    class wins (`.exclusive`). On an image where only some classes were annotated the softmax runs
    over those and the background alone; one without any counts nowhere.

    Args:
        weights: factor of each term; a term of weight 0 is not computed.
        options: by term the arguments named above: {"tversky": {"alpha": 0.3, "beta": 0.7}}.
        where: what this configures, for messages.

    Raises:
        ConfigError: a term, an option or a number is not possible.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None,
        options: Mapping[str, Mapping[str, float]] | None,
        exclusive: bool,
        where: str,
    ) -> None:
        self.exclusive = exclusive
        terms = TERMS["multiclass" if exclusive else "multilabel"]
        weights = {"dice": 1.0, next(iter(terms)): 1.0} if weights is None else weights
        _check_weights(weights, list(terms), where)
        _check_options(dict(options or {}), where)
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self._terms = terms
        self._options = {name: dict((options or {}).get(name, {})) for name in terms}

    def __call__(self, logits: Tensor, target: SegmentationTarget) -> dict[str, Tensor]:
        """The terms by name, each times its weight.

        Args:
            logits: (B, C, H, W).
        """
        masks = _masks(logits.float(), target, self.exclusive)
        return {
            name: weight * self._terms[name](masks, **self._options[name])
            for name, weight in self.weights.items()
        }


def _masks(logits: Tensor, target: SegmentationTarget, exclusive: bool) -> Masks:
    known = target.known
    truth = target.share().masked_fill(~known[..., None, None], 0)
    if exclusive:
        truth = without_overlap(truth)
        background = (1 - truth.sum(dim=1, keepdim=True)).clamp(min=0)
        truth = torch.cat([background, truth], dim=1)
        known = torch.cat([known.any(dim=1, keepdim=True), known], dim=1)
        logits = logits.masked_fill(~known[..., None, None], IMPOSSIBLE)
    return Masks(logits, truth, known, exclusive)


def _check_weights(weights: Any, terms: list[str], where: str) -> None:
    expected = f"{where}: expected losses to map names of {terms} to weights"
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{expected}, but got {weights!r}")
    for name, weight in weights.items():
        if name not in terms:
            raise ConfigError(f"{expected}, but got {name!r}")
        _check_number(f"{where}: expected the weight losses.{name}", weight, least=0)
    if not any(weights.values()):
        raise ConfigError(
            f"{where}: expected one weight of losses to be > 0, but got {dict(weights)}"
        )


def _check_options(options: Mapping[str, Any], where: str) -> None:
    for term, given in options.items():
        if term not in OPTIONS:
            raise ConfigError(
                f"{where}: expected each key of loss_args to be one of {list(OPTIONS)}, "
                f"but got {term!r}"
            )
        if not isinstance(given, Mapping) or set(given) - set(OPTIONS[term]):
            raise ConfigError(
                f"{where}: expected loss_args.{term} to set some of {OPTIONS[term]}, "
                f"but got {given!r}"
            )
        for name, value in given.items():
            # a focal exponent below 1 has no gradient at a perfect pixel
            least = 1 if name == "gamma" else 0
            _check_number(f"{where}: expected loss_args.{term}.{name}", value, least)


def _check_number(expected: str, value: Any, least: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not least <= value < math.inf:
        raise ConfigError(f"{expected} to be a number >= {least}, but got {value!r}")
