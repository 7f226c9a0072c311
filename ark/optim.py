"""Parameter groups: every trainable parameter in exactly one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ark.types import ConfigError


def parameter_groups(
    network: nn.Module, lr: float, lr_scale: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups by part of the network and by decay.

    Args:
        lr: the rate of every part that `lr_scale` does not name.
        lr_scale: factors by module path, such as {"backbone": 0.1}; of nested paths the longest
            that fits a parameter counts.
        weight_decay: of matrices and kernels; vectors (biases, norms) are not decayed.

    Raises:
        ConfigError: a path of `lr_scale` names no module.
    """
    modules = dict(network.named_modules())
    if unknown := [path for path in lr_scale if path not in modules]:
        parts = [name for name, _ in network.named_children()]
        raise ConfigError(f"lr_scale: {unknown[0]!r} names no module; parts here: {parts}")
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = max((p for p in lr_scale if name.startswith(f"{p}.")), key=len, default="")
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (part, decays),
            {
                "params": [],
                "lr": lr * lr_scale.get(part, 1.0),
                "weight_decay": weight_decay if decays else 0.0,
                "name": f"{part or 'rest'}{'' if decays else ' (no decay)'}",
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def check_covered(network: nn.Module, optimizer: Optimizer) -> None:
    """Every trainable parameter of `network` is in `optimizer` exactly once, and nothing else is.

    The published Foundation X left its output layers in no group: they never trained
    (spec foundation_x.md, fault 1).

    Raises:
        ConfigError: names the parameters that are left out, doubled or foreign.
    """
    names = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    faults = {
        "in no group": [names[i] for i in names if held[i] == 0],
        "in several groups": [names.get(i, "?") for i, count in held.items() if count > 1],
        "not the network's or not trainable": [str(i) for i in held if i not in names],
    }
    told = [f"{what}: {_some(which)}" for what, which in faults.items() if which]
    if told:
        raise ConfigError("optimizer: parameters " + "; ".join(told))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more
