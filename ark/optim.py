"""Parameter groups: every trainable parameter in exactly one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer

from ark.types import KINDS, ConfigError, TaskSpec

log = logging.getLogger("ark")


def parameter_groups(
    network: nn.Module,
    lr: float,
    lr_scale: Mapping[str, float],
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups by part of the network, by decay and, in the backbone, by layer.

    Args:
        lr: the rate of every part that `lr_scale` does not name.
        lr_scale: factors by module path, such as {"backbone": 0.1}, or by task kind, which means
            the own parts of all heads of that kind; of nested paths the longest that fits a
            parameter counts.
        weight_decay: of matrices and kernels; vectors (biases, norms) are not decayed.
        layer_decay: each layer of the backbone has this times the rate of the next one, the last
            the backbone's (BEiT, arXiv 2106.08254; the layers are timm's).

    Raises:
        ConfigError: a path of `lr_scale` names no module, or layer_decay is not in (0, 1].
    """
    lr_scale = _by_path(network, lr_scale)
    depth = _layer_scales(network, layer_decay)
    groups: dict[tuple[str, bool, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = max((p for p in lr_scale if name.startswith(f"{p}.")), key=len, default="")
        decays, layer = parameter.ndim > 1, depth.get(id(parameter), 1.0)
        group = groups.setdefault(
            (part, decays, layer),
            {
                "params": [],
                "lr": lr * lr_scale.get(part, 1.0) * layer,
                "weight_decay": weight_decay if decays else 0.0,
                "name": _name(part, decays, layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _by_path(network: nn.Module, lr_scale: Mapping[str, float]) -> dict[str, float]:
    modules, tasks = dict(network.named_modules()), getattr(network, "tasks", {})
    found: dict[str, float] = {}
    for name, factor in lr_scale.items():
        heads = [f"heads.{key}" for key, task in tasks.items() if task.kind == name]
        check_names_parameters("model.lr_scale", network, name, kinds=KINDS)
        for path in heads:
            found.setdefault(path, factor)  # a head's own path goes before its kind
        if name in modules:
            found[name] = factor
    return found


def check_names_parameters(
    where: str, network: nn.Module, path: str, kinds: Sequence[str] = ()
) -> None:
    """A setting for a part that is not there would do nothing.

    Of heads and what they share a warning is enough: a run may train some tasks of a recipe only.

    Raises:
        ConfigError: no module of the network has that path and no parameter is in it.
    """
    module = dict(network.named_modules()).get(path)
    if path in kinds or (module is not None and any(True for _ in module.parameters())):
        return
    if path.startswith(("shared.", "heads.")):
        log.warning("%s: %s names nothing that this run trains; passed over", where, path)
        return
    parts = [name for name, child in network.named_children() if list(child.parameters())]
    or_kinds = f", and kinds of heads: {list(kinds)}" if kinds else ""
    raise ConfigError(
        f"{where}: {path!r} names no module with parameters; parts here: {parts}{or_kinds}"
    )


def _layer_scales(network: nn.Module, decay: float) -> dict[int, float]:
    """The factor of each of the backbone's parameters, by id."""
    if not 0 < decay <= 1:
        raise ConfigError(f"layer_decay: {decay}; expected a factor above 0, at most 1")
    if decay == 1:
        return {}
    groups = param_groups_layer_decay(network.get_submodule("backbone.model"), layer_decay=decay)
    return {id(p): float(group["lr_scale"]) for group in groups for p in group["params"]}


def _name(part: str, decays: bool, layer: float) -> str:
    deep = "" if layer == 1 else f" x {layer:.3g}"
    return f"{part or 'rest'}{deep}{'' if decays else ' (no decay)'}"


def clip_by_task(tasks: Sequence[TaskSpec], clip: Mapping[str, float]) -> dict[str, float]:
    """Limits by task key; a key's own before that of its kind.

    Raises:
        ConfigError: a name is no task of the run and no kind, or a limit is not above 0.
    """
    known = [*KINDS, *(task.key for task in tasks)]
    for name, limit in clip.items():
        if name not in known or limit <= 0:
            raise ConfigError(
                f"model.clip: {name}: {limit}; expected a number above 0 for one of {known}"
            )
    limits = {task.key: clip.get(task.key, clip.get(task.kind)) for task in tasks}
    return {key: limit for key, limit in limits.items() if limit is not None}


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
