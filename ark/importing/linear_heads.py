"""One Linear a dataset, numbered in the file, as classification heads by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ark.errors import ConfigError
from ark.importing.options import Options
from ark.importing.parts import Found
from ark.importing.record import Record
from ark.importing.tasks import classification
from ark.types import TaskSpec

SKIP = "-"  # in --heads: leave this one out


def add_linear_heads(
    found: Found,
    state: Mapping[str, Tensor],
    prefix: str,
    usual: Sequence[str],
    options: Options,
    record: Record,
    bce: bool = False,
) -> None:
    """One Linear a dataset, `PREFIX.NUMBER`, as classification heads by name.

    Args:
        usual: the papers' task of each number.
        bce: multi-class heads learned with binary cross-entropy (Ark-6).

    Raises:
        ConfigError: another number of heads, or of outputs, than the tasks have.
    """
    begin = f"{prefix}."
    numbers = sorted({int(n[len(begin) :].split(".")[0]) for n in state if n.startswith(begin)})
    keys = list(options.heads if options.heads is not None else usual)
    if not numbers and keys:
        raise ConfigError(
            f"no tensor begins with {begin!r}, so the file has no heads; leave them out with "
            "--heads='[]', or say `ark import encoder` for the backbone alone"
        )
    if numbers != list(range(len(keys))):
        raise ConfigError(
            f"{prefix}: the file has heads {numbers}, but {len(keys)} datasets are named ({keys}); "
            f"name each head's task in the file's order: --heads='[dataset/task, ...]', {SKIP!r} "
            "leaves one out"
        )
    for number, key in zip(numbers, keys, strict=True):
        source = f"{prefix}.{number}"
        if key == SKIP:
            for name in state:
                if name.startswith(f"{source}."):
                    record.drop(name, "left out by --heads")
            continue
        task = classification(key, options.classes, bce)
        found.state |= _linear_head(state, source, task, record)
        found.tasks.append(task)


def _linear_head(
    state: Mapping[str, Tensor], source: str, task: TaskSpec, record: Record
) -> dict[str, Tensor]:
    """One Linear of the file as a classification head.

    Raises:
        ConfigError: it is not whole, or has not as many outputs as the task has classes.
    """
    parts = [f"{source}.{name}" for name in ("weight", "bias")]
    if missing := [name for name in parts if name not in state]:
        raise ConfigError(
            f"{missing[0]} is missing, of the head of {task.key}; the file is not whole. To leave "
            f"this head out write {SKIP!r} in its place in --heads"
        )
    weight = state[f"{source}.weight"]
    if len(weight) != len(task.classes):
        raise ConfigError(
            f"{source}.weight has {len(weight)} outputs, but {task.key} has {len(task.classes)} "
            f"classes {list(task.classes)}; the file was trained on other datasets or in another "
            "order: name them with --heads, or the classes with "
            f"--classes='{{{task.key}: [...]}}'"
        )
    found = {}
    for name in ("weight", "bias"):
        target = f"heads.{task.key}.linear.{name}"
        found[target] = state[f"{source}.{name}"]
        record.use(f"{source}.{name}", target)
    return found
