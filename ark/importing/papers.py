"""Ark-6 (MICCAI 2023) and Ark+ (Nature 2025): spec ark.md, Checkpoints to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ark.errors import ConfigError
from ark.importing.parts import Found, Options, find_encoder, linear_head
from ark.importing.record import Record
from ark.importing.tasks import ARK, classification

SIDES = {7: 224, 12: 768}  # the papers', by window
SKIP = "-"  # in --heads: leave this one out


def find_ark(state: Mapping[str, Tensor], options: Options, record: Record, bce: bool) -> Found:
    """Encoder, projector and one Linear a dataset.

    Args:
        bce: multi-class heads learned with binary cross-entropy (Ark-6).

    Raises:
        ConfigError: heads and datasets disagree, or tensors are unknown.
    """
    ours = re.compile(r"(projector|omni_heads)\.")
    encoder = {name: tensor for name, tensor in state.items() if not ours.match(name)}
    found = find_encoder(encoder, options, record, sides=SIDES)
    found.projector = _projector(state)
    for name, tensor in state.items():
        if name.startswith("projector."):
            found.state[name] = tensor
            record.use(name, name)
    _add_heads(found, state, options, record, bce)
    return found


def _projector(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """One Linear, or two with a ReLU between, by their names."""
    if "projector.weight" in state:
        return {"width": state["projector.weight"].shape[0]}
    if "projector.0.weight" in state:
        return {"width": state["projector.0.weight"].shape[0], "hidden": True}
    return None


def _add_heads(
    found: Found, state: Mapping[str, Tensor], options: Options, record: Record, bce: bool
) -> None:
    numbers = sorted({int(n.split(".")[1]) for n in state if n.startswith("omni_heads.")})
    keys = list(options.heads) if options.heads is not None else list(ARK)
    if numbers != list(range(len(keys))):
        raise ConfigError(
            f"omni_heads: the file has heads {numbers}, but {len(keys)} datasets are named "
            f"({keys}); name each head's task in the file's order: --heads='[dataset/task, ...]', "
            f"{SKIP!r} leaves one out"
        )
    for number, key in zip(numbers, keys, strict=True):
        source = f"omni_heads.{number}"
        if key == SKIP:
            for name in ("weight", "bias"):
                record.drop(f"{source}.{name}", "left out by --heads")
            continue
        task = classification(key, options.classes, bce)
        found.state |= linear_head(state, source, task, record, "--heads")
        found.tasks.append(task)
    if options.heads is None and numbers:
        record.notes.append(
            "heads are named by the spec's order of datasets; the three of 14 classes have the same "
            "shape, so only --heads can say that a file has another order"
        )
