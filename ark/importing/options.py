"""What the user says of a file, and whether it can act on a file of this kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ark.errors import ConfigError

LastShift = Literal["origin", "keep", "off"]


@dataclass(frozen=True)
class Options:
    """What the user says of the file; see `ark.importing.command.import_model`."""

    backbone: str | None = None
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    last_shift: LastShift = "origin"
    heads: Sequence[str] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    first_class: int | None = None


def check_options(kind: str, options: Options) -> None:
    """
    Raises:
        ConfigError: an option that nothing of such a file reads.
    """
    papers = {"heads": options.heads, "classes": options.classes or None}
    detectors = {"first_class": options.first_class}
    unread = detectors if kind.startswith("ark") else {}
    for name, value in (papers | detectors if kind == "encoder" else unread).items():
        if value is not None:
            raise ConfigError(f"--{name}={value} says nothing of a file of kind {kind}; drop it")
    if options.first_class is not None and options.first_class < 0:
        raise ConfigError(f"--first_class={options.first_class}; expected a number from 0 on")


def check_classes(options: Options, tasks: Sequence[str]) -> None:
    """
    Args:
        tasks: keys of all tasks of the file.

    Raises:
        ConfigError: classes of another task.
    """
    if unknown := [key for key in options.classes if key not in tasks]:
        raise ConfigError(f"--classes: {unknown[0]!r} is no task of the file; it has {tasks}")
