"""What training on one task does to the others: numbers drawn from a matrix of scores.

Shape letters: R validations in their order (rows), T tasks (columns).
`scores` (R, T) float: the main metric of each task on the validation split; NaN: not measured.
`trained` (R, T) bool: whether the task trained since the row before. A *visit* of a task is a run
of consecutive rows in which it trained: in a cyclic plan it has one visit a cycle, of all its
phases. With a row after every phase nothing else trains in a visit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Trained = NDArray[np.bool_]


def visits(trained: Trained) -> list[tuple[int, int]]:
    """(R,) bool of one task -> the first and last row of each of its visits."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int)))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def backward_transfer(scores: Scores, trained: Trained) -> Scores:
    """(T,) score at the end less the score after the task's last visit; below 0: forgotten.

    Where a task has one visit this is R_{T,i} - R_{i,i}, the term of BWT for task i (Lopez-Paz &
    Ranzato 2017, arXiv 1706.08840, section 2). NaN: the task never trained; it trained until the
    end (the paper leaves out the last task); one of the two scores is NaN.
    """

    def term(score: Scores, when: list[tuple[int, int]]) -> float:
        return score[-1] - score[when[-1][1]]

    return _of_tasks_left_behind(scores, trained, term)


def forgetting(scores: Scores, trained: Trained) -> Scores:
    """(T,) the best score that was ever reached less the score at the end; above 0: forgotten.

    f_j^k = max_{l in 1..k-1} a_{l,j} - a_{k,j} with k the last row (Chaudhry et al. 2018, arXiv
    1801.10112, definition 3); the row before training is none of 1..k-1. NaN as in
    `backward_transfer`, and where no score before the last row is a number; else NaN is passed
    over in the maximum.
    """
    begin = 0 if trained[0].any() else 1

    def term(score: Scores, when: list[tuple[int, int]]) -> float:
        return np.fmax.reduce(score[begin:-1], initial=np.nan) - score[-1]

    return _of_tasks_left_behind(scores, trained, term)


def lost_between(scores: Scores, trained: Trained) -> Scores:
    """(T,) what a task loses while others train: its score after a visit less that just before its
    next one, the mean over its visits but the last. Above 0: forgotten, and learned anew each time.

    A plan that never returns has none of it. NaN: fewer than two visits, or a score that is NaN.
    """

    def term(score: Scores, when: list[tuple[int, int]]) -> float:
        losses = [score[end] - score[begin - 1] for (_, end), (begin, _) in pairwise(when)]
        return float(np.mean(losses)) if losses else math.nan

    return _by_task(scores, trained, term)


def forward_transfer(scores: Scores, trained: Trained) -> Scores:
    """(T,) score just before the task's first visit less the score at the start.

    R_{i-1,i} - b_i, the term of FWT for task i (Lopez-Paz & Ranzato 2017, arXiv 1706.08840,
    section 2). A head that has not trained yet stands at its first weights: what this tells is
    whether features and shared parts moved in its favour, which is little; the comparison with
    single-task training (`ark ablate`) tells more. NaN: no row of the start (nothing trained before
    row 0); nothing trained before the task (the paper leaves out the first); a score is NaN.
    """
    measured = not trained[0].any()

    def term(score: Scores, when: list[tuple[int, int]]) -> float:
        before = when[0][0] - 1
        return score[before] - score[0] if measured and before > 0 else math.nan

    return _by_task(scores, trained, term)


MEASURES: dict[str, Callable[[Scores, Trained], Scores]] = {
    "backward transfer": backward_transfer,
    "forgetting": forgetting,
    "lost between visits": lost_between,
    "forward transfer": forward_transfer,
}


def _by_task(
    scores: Scores, trained: Trained, term: Callable[[Scores, list[tuple[int, int]]], float]
) -> Scores:
    found = ((score, visits(mine)) for score, mine in zip(scores.T, trained.T, strict=True))
    return np.array([term(score, when) if when else math.nan for score, when in found])


def _of_tasks_left_behind(
    scores: Scores, trained: Trained, term: Callable[[Scores, list[tuple[int, int]]], float]
) -> Scores:
    return np.where(trained[-1], math.nan, _by_task(scores, trained, term))
