"""Which head each task gets: the recipe's `data.heads` goes before the dataset's YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    check_names("data.heads", heads, specs)
    for name, head in heads.items():
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
    check_names("data.metrics", metrics, specs)
    return {
        key: replace(spec, metric=metrics.get(key, metrics.get(spec.kind, spec.metric)))
        for key, spec in specs.items()
    }


def check_names(field: str, names: Iterable[str], specs: Mapping[str, TaskSpec]) -> None:
    """Of a setting by task key or task kind.

    Raises:
        ConfigError: names the first name that is neither.
    """
    for name in names:
        if name not in KINDS and name not in specs:
            raise ConfigError(
                f"{field}: {name!r} is neither a task nor a kind of task; tasks: {list(specs)}, "
                f"kinds: {list(KINDS)}"
            )


def _head(spec: TaskSpec, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    head = heads.get(spec.key) or heads.get(spec.kind) or spec.head
    if not head:
        raise ConfigError(
            f"task {spec.key}: has no head; give it one under `tasks` in the YAML of dataset "
            f"{spec.dataset!r}, or name {spec.kind!r} or {spec.key!r} in the recipe's data.heads"
        )
    return dict(head)
