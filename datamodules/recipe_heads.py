"""Which head each task gets: the recipe's `data.heads` goes before the dataset's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ark.types import KINDS, ConfigError, TaskSpec


def choose_heads(
    specs: Mapping[str, TaskSpec], heads: Mapping[str, Mapping[str, Any]]
) -> dict[str, TaskSpec]:
    """The specs, each with its head.

    Args:
        specs: by task key.
        heads: task kind or task key -> head, which takes the whole place of the dataset's; a
            task's own goes before its kind's.

    Raises:
        ConfigError: a key that is neither, a head that is no mapping, or a task without one.
    """
    for name, head in heads.items():
        if name not in KINDS and name not in specs:
            raise ConfigError(
                f"data.heads: {name!r} is neither a task nor a kind of task; tasks: "
                f"{list(specs)}, kinds: {list(KINDS)}"
            )
        if not isinstance(head, Mapping) or "class_path" not in head:
            raise ConfigError(
                f"data.heads: {name} is {head!r}; expected {{class_path: ..., init_args: ...}}"
            )
    return {key: replace(spec, head=_head(spec, heads)) for key, spec in specs.items()}


def choose_metrics(
    specs: Mapping[str, TaskSpec], metrics: Mapping[str, str]
) -> dict[str, TaskSpec]:
    """The specs, each with its main metric: the recipe's, by task key or else kind, or else the
    dataset's.

    Raises:
        ConfigError: a key that is neither task nor kind.
    """
    if unknown := [name for name in metrics if name not in KINDS and name not in specs]:
        raise ConfigError(
            f"data.metrics: {unknown[0]!r} is neither a task nor a kind of task; tasks: "
            f"{list(specs)}, kinds: {list(KINDS)}"
        )
    return {
        key: replace(spec, metric=metrics.get(key, metrics.get(spec.kind, spec.metric)))
        for key, spec in specs.items()
    }


def _head(spec: TaskSpec, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    head = heads.get(spec.key) or heads.get(spec.kind) or spec.head
    if not head:
        raise ConfigError(
            f"task {spec.key}: has no head; give it one under `tasks` in the YAML of dataset "
            f"{spec.dataset!r}, or name {spec.kind!r} or {spec.key!r} in the recipe's data.heads"
        )
    return dict(head)
