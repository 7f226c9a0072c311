"""A network takes a file's tensors, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ark.errors import ConfigError
from ark.importing.record import Record
from ark.importing.variants import FIX


def fill(network: nn.Module, state: Mapping[str, Tensor], record: Record, path: Any) -> None:
    """Loads strictly, but for what Ark has and no other file.

    Raises:
        ConfigError: tensors have no place, are missing or of another shape.
    """
    own = network.state_dict()
    where = f"{path} does not fit the network"
    if unknown := [name for name in state if name not in own]:
        raise ConfigError(
            f"{where}: {len(unknown)} tensors have no place, such as {unknown[:3]}; {FIX}, or "
            "leave them out with --drop=BEGINNING_OF_NAME"
        )
    for name, tensor in state.items():
        check_finite(name, tensor, path)
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}; "
                f"{FIX}"
            )
    for name in own:
        if name not in state:
            if (why := own_parts(name)) is None:
                raise ConfigError(f"{where}: {name} is missing; the file is not whole, or {FIX}")
            record.missing[name] = why
    network.load_state_dict(dict(state), strict=False)


def check_finite(name: str, tensor: Tensor, path: Any) -> None:
    """
    Raises:
        ConfigError: some of its numbers are not.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ConfigError(
            f"{path}: {name} holds numbers that are infinite or none (NaN); the file is damaged, "
            "or its training diverged: take an earlier one"
        )


def own_parts(name: str) -> str | None:
    """Why no file has this tensor; None: one must."""
    if name.endswith((".temperature", ".thresholds")):
        return "Ark's own, for calibration: temperature 1, thresholds 0.5"
    if name.endswith("dn_query_generator.label_embedding.weight"):
        return "noisy queries of training only; random start"
    if name.endswith("num_batches_tracked"):
        return "counter of BatchNorm, unused at inference"
    return None
