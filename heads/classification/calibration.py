"""What a classification head chooses on the validation split: a temperature and thresholds.

All in float64 on the host, from what every rank has gathered, so that all ranks choose the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .links import TINY, Link

TEMPERATURES = (0.05, 20.0)
UNDECIDED = 0.5
_STEPS = 48  # of the golden section: the logarithm of the temperature to nine digits


def best_temperature(
    logits: Tensor, labels: Tensor, link: Link, independent: bool, current: float
) -> float:
    """The temperature in TEMPERATURES with the least negative log-likelihood of the labels (Guo et
    al. 2017, arXiv 1706.04599, section 4.2); `current` where there is none better.

    A standard normal prior on log T, worth one label, keeps few labels that are all predicted right
    from asking for a temperature of 0: their likelihood grows without end.

    Args:
        logits: (N, L) float64, before any temperature.
        labels: (N, K): 1 present, 0 absent, less where unknown.
        independent: the labels are yes/no labels of their own, not one class an image.
    """
    if independent:
        known = labels >= 0
        signed = torch.where(labels > 0, logits, -logits)[known]
        count = len(signed)

        def surprise(temperature: float) -> float:
            return float(-F.logsigmoid(signed / temperature).sum())
    else:
        truth = labels.argmax(dim=1, keepdim=True)
        count = len(truth)

        def surprise(temperature: float) -> float:
            of_truth = link.probabilities(logits / temperature).gather(1, truth)
            return float(-of_truth.clamp(min=TINY).log().sum())

    def cost(temperature: float) -> float:
        return (surprise(temperature) + math.log(temperature) ** 2 / 2) / max(count, 1)

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = math.exp(_least(lambda x: cost(math.exp(x)), low, high))
    return found if cost(found) < cost(current) else current


def _least(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum in [low, high] has it, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return (low + high) / 2


def best_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,) thresholds with the greatest F1; 0.5 for a class without both positives and negatives.

    Each lies halfway between two neighbouring probabilities, or between the least and 0. Of several
    that are equally good, the highest.

    Args:
        probabilities: (N, K).
        labels: (N, K): 1 present, 0 absent, less where unknown.
    """
    return np.array([_threshold(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)])


def _threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    known = labels >= 0
    order = np.argsort(-probabilities[known], kind="stable")
    falling, positive = probabilities[known][order], labels[known][order] > 0
    if positive.all() or not positive.any():
        return UNDECIDED
    cuts = np.flatnonzero(np.diff(falling, append=-1.0))  # the last of each run of equal ones
    hits, called = positive.cumsum()[cuts], cuts + 1
    best = cuts[np.argmax(2 * hits / (called + positive.sum()))]
    below = falling[best + 1] if best + 1 < len(falling) else 0.0
    return float((falling[best] + below) / 2)
