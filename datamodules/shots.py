"""Few-shot: a task trains on a part of its samples, drawn once for the whole run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ark.seeds import seed_of
from ark.types import ConfigError, TaskSpec
from datamodules.recipe_heads import check_names


def choose_shots(
    specs: Mapping[str, TaskSpec], shots: Mapping[str, int | float]
) -> dict[str, int | float]:
    """By task key, of the tasks that do not train on all they have.

    Args:
        specs: by task key.
        shots: task kind or task key -> a number of samples (an integer) or a share of them (a
            float); a task's own goes before its kind's.

    Raises:
        ConfigError: a name that is neither, a number below 1, or a share that is not in (0, 1].
    """
    check_names("data.shots", shots, specs)
    for name, value in shots.items():
        if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
            raise ConfigError(
                f"data.shots: {name}: {value}; expected a number of samples from 1 on, or a share "
                "of them in (0, 1] such as 0.1"
            )
    found = {key: shots.get(key, shots.get(spec.kind)) for key, spec in specs.items()}
    return {key: value for key, value in found.items() if value is not None}


def draw_shots(lengths: np.ndarray, shots: int | float, seed: int, key: str) -> list[np.ndarray]:
    """Which of a task's samples it trains on. With the same seed a smaller draw is a part of a
    larger one.

    Args:
        lengths: (S,) samples of each shard.
        shots: how many, or which share of them, but at least one.
        seed: of the run.
        key: of the task; each has a draw of its own.

    Returns:
        For each shard the ordinals that were drawn, in stored order.

    Raises:
        ConfigError: there are fewer.
    """
    size = int(lengths.sum())
    count = shots if isinstance(shots, int) else max(1, round(shots * size))
    if count > size:
        raise ConfigError(
            f"data.shots: {key}: {count}, but only {size} training samples carry it; give at most "
            "these, or drop it"
        )
    drawn = np.random.default_rng(seed_of("shots", seed, key)).permutation(size)[:count]
    ends = np.cumsum(lengths)
    shards = np.searchsorted(ends, drawn, side="right")
    ordinals = drawn - (ends - lengths)[shards]
    return [np.sort(ordinals[shards == number]) for number in range(len(lengths))]
