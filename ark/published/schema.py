"""The types and ranges in a `config.json` that anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ark.errors import ConfigError

if TYPE_CHECKING:
    from ark.published.config import Facts

LARGEST = 8192  # pixels of a side; a larger one is a mistake, or means to fill the memory
PRECISIONS = ("float32", "float16", "bfloat16")
_WORDS = {dict: "a mapping", list: "a list", str: "a text", int: "an integer"}


def check_facts(path: object, facts: Facts) -> None:
    """
    Args:
        path: of the file, for messages.

    Raises:
        ConfigError: names the file, the field, its value and what was expected.
    """
    said = vars(facts)
    for name in ("recipe", "data", "metrics", "code"):
        _check(path, f"ark.{name}", said[name], dict)
    for name in ("which", "name", "license", "sha256"):
        _check(path, f"ark.{name}", said[name], str)
    if facts.start is not None:
        _check(path, "ark.start", facts.start, dict)
    for name in ("data", "metrics"):
        for key, value in said[name].items():
            _check(path, f"ark.{name}.{key}", value, dict)
    for name, expected in (("parts", ("heads", "backbone")), ("precision", PRECISIONS)):
        if said[name] not in expected:
            choices = " or ".join(map(repr, expected))
            raise ConfigError(f"{path}: ark.{name} is {_short(said[name])}; expected {choices}")
    _check_channels(path, "mean", facts.mean, lowest=-math.inf)
    _check_channels(path, "std", facts.std, lowest=0.0)
    check_architecture(path, facts.architecture)


def check_architecture(path: object, architecture: Any) -> None:
    """Of a published model or a checkpoint; whether it can be built only building it tells.

    Raises:
        ConfigError: as `check_facts`.
    """
    where = "ark.architecture"
    _check(path, where, architecture, dict)
    backbone = architecture.get("backbone")
    _check(path, f"{where}.backbone", backbone, dict)
    _check(path, f"{where}.backbone.name", backbone.get("name"), str)
    _check(path, f"{where}.backbone.args", backbone.get("args") or {}, dict)
    side = backbone.get("image_size")
    _check(path, f"{where}.backbone.image_size", side, int)
    if not 1 <= side <= LARGEST:
        raise ConfigError(
            f"{path}: {where}.backbone.image_size is {side}; expected 1 to {LARGEST} pixels"
        )
    _check(path, f"{where}.projector", architecture.get("projector") or {}, dict)
    _check(path, f"{where}.tasks", architecture.get("tasks"), list)
    for number, task in enumerate(architecture["tasks"]):
        _check_task(path, f"{where}.tasks[{number}]", task)


def _check_task(path: object, where: str, task: Any) -> None:
    _check(path, where, task, dict)
    for name in ("dataset", "name", "kind"):
        _check(path, f"{where}.{name}", task.get(name), str)
    _check(path, f"{where}.classes", task.get("classes"), list)
    for number, name in enumerate(task["classes"]):
        _check(path, f"{where}.classes[{number}]", name, str)
    head = task.get("head")
    _check(path, f"{where}.head", head, dict)
    _check(path, f"{where}.head.class_path", head.get("class_path"), str)
    _check(path, f"{where}.head.init_args", head.get("init_args") or {}, dict)


def _check_channels(path: object, name: str, values: Any, lowest: float) -> None:
    """None, or one finite number above `lowest` for each of three channels."""
    numbers = isinstance(values, list) and all(
        isinstance(v, int | float) and math.isfinite(v) and v > lowest for v in values
    )
    if not numbers or len(values) not in (0, 3):
        above = " above 0" if lowest == 0 else ""
        raise ConfigError(
            f"{path}: ark.{name} is {_short(values)}; expected three numbers{above}, or []"
        )


def _check(path: object, field: str, value: Any, kind: type) -> None:
    fits = isinstance(value, Mapping if kind is dict else (list, tuple) if kind is list else kind)
    if not fits or isinstance(value, bool):
        said = "missing" if value is None else _short(value)
        raise ConfigError(f"{path}: {field} is {said}; expected {_WORDS[kind]}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
