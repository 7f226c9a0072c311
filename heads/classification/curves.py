"""Areas under the curves of one class, and calibration gaps, prepared so that the bootstrap can
weigh the images anew a thousand times."""

from __future__ import annotations

import numpy as np

BINS = 15


class Curve:
    """The images where a class is known, by falling probability.

    Args:
        scores: (N,) float.
        labels: (N,): 1 present, 0 absent, less where unknown.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        known = np.flatnonzero(labels >= 0)
        self.order = known[np.argsort(-scores[known], kind="stable")]
        self.positive = (labels[self.order] > 0).astype(float)
        falling = scores[self.order]
        # a probability that several images share is one step of the curves
        last = np.flatnonzero(np.diff(falling, append=-np.inf))
        self.ends = None if len(last) == len(falling) else last
        self.broken = bool(np.isnan(falling).any())  # a network that diverged has no order

    def areas(self, weights: np.ndarray) -> tuple[float, float]:
        """(AUROC, average precision); NaN without positives or without negatives.

        AUROC: the share of pairs in order, a tie being half a pair (trapezoids). Average precision:
        precision at each step times the recall won there, as scikit-learn has it.

        Args:
            weights: (N,) float >= 0, of all images.
        """
        mine = weights[self.order]
        hits, seen = (mine * self.positive).cumsum(), mine.cumsum()
        if self.broken or not len(mine) or hits[-1] <= 0 or hits[-1] >= seen[-1]:
            return float("nan"), float("nan")
        if self.ends is not None:
            hits, seen = hits[self.ends], seen[self.ends]
        positives, negatives = hits[-1], seen[-1] - hits[-1]
        won = np.diff(hits, prepend=0.0)
        missed = seen - hits
        # a negative pairs with every positive before it and half of those of its own step
        pairs = np.diff(missed, prepend=0.0) @ (hits - won / 2)
        precise = won @ (hits / np.where(seen > 0, seen, 1.0))
        return float(pairs / (positives * negatives)), float(precise / positives)


def gaps(confidence: np.ndarray, right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(N, BINS): of each image and bin, the sum of confidence minus right over its C entries.

    The expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3) is the sum over
    the bins of |weights @ gaps|, divided by the weight of the entries. A bin holds its upper edge.

    Args:
        confidence, right, counted: (N, C), in 0..1, 0 or 1, and bool.
    """
    bins = np.ceil(np.nan_to_num(confidence) * BINS).astype(int).clip(1, BINS) - 1
    result = np.zeros((len(confidence), BINS))
    rows = np.broadcast_to(np.arange(len(confidence))[:, None], bins.shape)
    difference = np.where(counted, confidence - right, 0.0)
    np.add.at(result, (rows, bins), difference)
    return result
