"""What an uncertain label becomes in training: a task's `uncertain`, drawn anew at every fetch.

    tasks:
    - {name: findings, uncertain: smoothed_ones, head: ...}
    - {name: findings, uncertain: {Edema: ones, default: ignore}, head: ...}

policy            an uncertain label becomes
ignore            unknown: it is in no loss; what happens where nothing is said
zeros, ones       0, 1
smoothed_zeros    a draw from U(0, 0.3)
smoothed_ones     a draw from U(0.55, 0.85); both as spec ark.md has them

In evaluation an uncertain label is unknown whatever the policy: nobody knows the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ark.seeds import seed_of
from ark.types import ConfigError, TaskSpec
from datamodules.annotations import UNCERTAIN

IGNORE, OTHERS = "ignore", "default"
POLICIES: dict[str, tuple[float, float]] = {  # the range that the label is drawn from
    IGNORE: (np.nan, np.nan),
    "zeros": (0.0, 0.0),
    "ones": (1.0, 1.0),
    "smoothed_zeros": (0.0, 0.3),
    "smoothed_ones": (0.55, 0.85),
}


def unknown(labels: np.ndarray) -> np.ndarray:
    """(K,) labels with NaN where they are uncertain."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), labels)


class Uncertain:
    """The policies of one task.

    Args:
        policies: class -> policy, for every class in their order.
    """

    def __init__(self, policies: Mapping[str, str]) -> None:
        self.policies = dict(policies)
        ranges = np.array([POLICIES[policy] for policy in policies.values()], np.float32)
        self._low, self._width = ranges[:, 0], ranges[:, 1] - ranges[:, 0]

    @classmethod
    def checked(cls, config: Any, task: TaskSpec) -> Uncertain | None:
        """From a task's YAML; None for kinds whose labels are never uncertain.

        Args:
            config: a policy, or {class: policy} with `default` for the classes not named.

        Raises:
            ConfigError: no such policy or class, or a task of another kind.
        """
        where = f"task {task.key}: uncertain"
        if task.kind != "multilabel":
            if config not in (IGNORE, None, {}):
                raise ConfigError(
                    f"{where} is {config!r}, but the task is {task.kind}; only multilabel labels "
                    "are uncertain: drop it"
                )
            return None
        given = dict(config) if isinstance(config, Mapping) else {OTHERS: config or IGNORE}
        if strange := [name for name in given if name not in (*task.classes, OTHERS)]:
            raise ConfigError(
                f"{where} names {strange[0]!r}; expected one of the classes "
                f"{list(task.classes)}, or {OTHERS!r} for the classes not named"
            )
        for policy in given.values():
            if not isinstance(policy, str) or policy not in POLICIES:
                raise ConfigError(
                    f"{where} is {policy!r}; expected one of {list(POLICIES)}, or {{class: one of "
                    f"them, {OTHERS}: ...}}"
                )
        rest = given.get(OTHERS, IGNORE)
        return cls({name: given.get(name, rest) for name in task.classes})

    def __call__(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """(K,) labels without uncertain ones.

        Args:
            seed: of the sample's augmentation. What a class becomes depends on it and on the class
                alone, not on which other labels are uncertain.
        """
        uncertain = labels == UNCERTAIN
        if not uncertain.any():
            return labels
        draws = np.random.default_rng(seed_of("uncertain", seed)).random(len(labels), np.float32)
        return np.where(uncertain, self._low + self._width * draws, labels)
