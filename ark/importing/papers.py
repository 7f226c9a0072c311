"""Ark-6 (MICCAI 2023) and Ark+ (Nature 2025): spec ark.md, Checkpoints to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ark.importing.linear_heads import add_linear_heads
from ark.importing.options import Options
from ark.importing.parts import Found, find_encoder
from ark.importing.record import Record
from ark.importing.tasks import ARK

SIDES = {7: 224, 12: 768}  # the papers', by window


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
    add_linear_heads(found, state, "omni_heads", ARK, options, record, bce)
    if options.heads is None:
        record.notes.append(
            "heads are named by the spec's order of datasets; the three of 14 classes have the "
            "same shape, so only --heads can say that a file has another order"
        )
    return found


def _projector(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """One Linear, or two with a ReLU between, by their names."""
    if "projector.weight" in state:
        return {"width": state["projector.weight"].shape[0]}
    if "projector.0.weight" in state:
        return {"width": state["projector.0.weight"].shape[0], "hidden": True}
    return None
