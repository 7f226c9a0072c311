"""AGVM: each module's rate is scaled so that the variance of its gradient matches the backbone's.

For large batches on dense tasks (arXiv 2210.11078, spec agvm.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ark.surgery import flat, given
from ark.types import Batch, ConfigError


@dataclass(frozen=True)
class AGVMConfig:
    """When and how far rates are scaled.

    Args:
        interval: steps of the same task between estimates.
        warmup: the first step that may have one.
        momentum: of the smoothed factor.
        low, high: limits of the ratio of variances, before its square root.
        modules: paths in the network, such as shared.detector_encoder, whose rates are scaled one
            by one; of nested ones the longest that fits a parameter counts. The backbone is always
            there. Empty: each part of the network, each shared part and each head.

    Raises:
        ConfigError: a number is out of range.
    """

    interval: int = 5
    warmup: int = 500
    momentum: float = 0.97
    low: float = 0.5
    high: float = 10.0
    modules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        in_range = self.interval >= 1 and self.warmup >= 0 and 0 <= self.momentum < 1
        if not in_range or not 0 < self.low <= 1 <= self.high:
            raise ConfigError(
                f"model.agvm: {self}; expected interval >= 1, warmup >= 0, momentum in [0, 1) and "
                "0 < low <= 1 <= high"
            )


class AGVM(nn.Module):
    """Estimates how much the halves of a batch disagree in each module, and scales its rate.

    phi = 1 - cos(g_A, g_B) of the gradients of the two halves, after Adam's division where the
    optimiser has one. s = sqrt(clamp((phi_backbone + 1e-6) / (phi + 1e-6), low, high)), smoothed
    to mu, with which the module's rate is multiplied in every step.

    A step with an estimate is told the first half's gradient, by `snapshot` where gradients
    accumulate, otherwise by `first_half`; the second's is the rest. A module that does not move
    (locked, or the head of another task) keeps its mu. Where the backbone is locked there is
    nothing to compare with, and all keep theirs.

    Args:
        modules: parameters by module; the first is what others are compared with.
    """

    def __init__(self, config: AGVMConfig, modules: Mapping[str, Sequence[nn.Parameter]]) -> None:
        super().__init__()
        self.config = config
        self._modules_of = {name: list(parameters) for name, parameters in modules.items()}
        self.factors = dict.fromkeys(modules, 1.0)  # mu; on the host, as rates are
        self.variances: dict[str, float] = {}  # phi of the last estimate, of modules that moved
        self._first: Tensor | None = None  # the first half's part of the step's gradient
        self._rates: list[tuple[dict[str, Any], Any]] = []  # groups and their own rates

    @property
    def _all(self) -> list[nn.Parameter]:
        return [p for parameters in self._modules_of.values() for p in parameters]

    def split(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups, each divided so that it lies in one module (or in none)."""
        of = {id(p): name for name, params in self._modules_of.items() for p in params}
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for n, group in enumerate(groups):
            for p in group["params"]:
                name = of.get(id(p), "")
                empty = {**group, "params": [], "agvm": name}
                if name and "name" in group:
                    empty["name"] = f"{group['name']} [{name}]"
                found.setdefault((n, name), empty)["params"].append(p)
        return list(found.values())

    def estimates(self, step: int, task_step: int) -> bool:
        """Whether optimiser step `step`, the `task_step`-th of its task (from 0), has an estimate.

        Counted by the task's own: of all steps every n-th could always be the same task's.
        """
        return step >= self.config.warmup and task_step % self.config.interval == 0

    @torch.no_grad()
    def snapshot(
        self, reduce: Callable[[Tensor], Tensor] | None = None, scale: float = 1.0
    ) -> None:
        """After the backward of the micro-batch that ends the first half of an even number.

        Args:
            reduce: the mean over ranks, `trainer.strategy.reduce`: DDP averages only with the last
                micro-batch.
            scale: of the loss by a scaler of mixed precision; the step's gradient comes unscaled.
        """
        first = flat(self._all, [p.grad if p.requires_grad else None for p in self._all]) / scale
        self._first = reduce(first) if reduce else first

    def first_half(
        self,
        loss: Tensor,
        parameters: Iterable[nn.Parameter],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Where nothing accumulates: the loss of the first of the batch's `halves`, times 1/2, to
        be added to that of the second. Goes through the backward of the first half at once.

        Args:
            parameters: all that the loss may reach: `module.parameters()`.
            reduce: as in `snapshot`.

        Returns:
            a scalar of the same value and gradient.
        """
        every = [p for p in parameters if p.requires_grad]
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, every, allow_unused=True)
        gradients = {p: g for p, g in zip(every, found, strict=True) if g is not None}
        first = flat(self._all, [gradients.get(p) for p in self._all])  # type: ignore[call-overload]
        self._first = reduce(first) if reduce else first
        return given(loss.detach(), gradients)

    def scale_rates(self, optimizer: Optimizer) -> None:
        """Once the step's gradient is whole, before clipping. Ends an estimate if one was begun."""
        if self._first is not None:
            self._estimate(optimizer, self._first)
            self._first = None
        self.restore_rates()
        for group in optimizer.param_groups:
            self._rates.append((group, group["lr"]))
            group["lr"] = group["lr"] * self.factors.get(group["agvm"], 1.0)

    def restore_rates(self) -> None:
        """After the optimiser's step."""
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates = []

    @torch.no_grad()
    def _estimate(self, optimizer: Optimizer, first: Tensor) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        parts = first.split([p.numel() for p in self._all])
        half_of = {id(p): part for p, part in zip(self._all, parts, strict=True)}
        products = []
        for parameters in self._modules_of.values():
            of_module = torch.zeros(3, dtype=torch.float64, device=first.device)  # ab, aa, bb
            for p in parameters:
                if p.requires_grad and p.grad is not None:
                    half, divisor = half_of[id(p)], _divisor(optimizer, groups[id(p)], p)
                    a, b = half / divisor, (p.grad.flatten() - half) / divisor
                    of_module += torch.stack(
                        [(x * y).sum(dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b))]
                    )
            products.append(of_module)
        found = [_variance(*each) for each in torch.stack(products).tolist()]
        self.variances = {
            name: variance
            for name, variance in zip(self.factors, found, strict=True)
            if variance is not None
        }
        self._smooth(self.variances.get(next(iter(self.factors))))

    def _smooth(self, reference: float | None) -> None:
        low, high, keep = self.config.low, self.config.high, self.config.momentum
        if reference is not None:
            for name, variance in self.variances.items():
                ratio = (reference + 1e-6) / (variance + 1e-6)
                new = min(max(ratio, low), high) ** 0.5
                self.factors[name] = keep * self.factors[name] + (1 - keep) * new

    def get_extra_state(self) -> dict[str, float]:
        return dict(self.factors)

    def set_extra_state(self, state: dict[str, float]) -> None:
        if list(state) != list(self.factors):
            raise ConfigError(
                f"model.agvm: the checkpoint scales {list(state)}, this run {list(self.factors)}; "
                "set modules as they were"
            )
        self.factors = dict(state)


def _divisor(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> Tensor:
    """(n,) sqrt(v) + eps, v the second moment as this step would update it; 1 without one."""
    assert parameter.grad is not None
    state = optimizer.state.get(parameter, {})
    if "betas" not in group or "eps" not in group or (state and "exp_avg_sq" not in state):
        return torch.ones((), device=parameter.device)
    decay, old = group["betas"][1], state.get("exp_avg_sq", 0.0)
    moment = decay * old + (1 - decay) * parameter.grad.square()
    return (moment.sqrt() + group["eps"]).flatten()


def _variance(ab: float, aa: float, bb: float) -> float | None:
    """1 - cos; None where a half is zero or not finite: it says nothing."""
    norms = (aa * bb) ** 0.5
    return 1 - ab / norms if 0 < norms < float("inf") else None


def module_parameters(
    network: nn.Module, named: Sequence[str] = ()
) -> dict[str, list[nn.Parameter]]:
    """Parameters by the longest of `named` that fits their name, the backbone's first.

    Args:
        named: paths; see `AGVMConfig.modules`.

    Raises:
        ConfigError: a path names no module with parameters of its own.
    """
    paths = list(named)
    if not paths:
        children = [name for name, _ in network.named_children() if name not in ("heads", "shared")]
        nested = [
            f"{part}.{name}"
            for part in ("shared", "heads")
            for name, _ in network.get_submodule(part).named_children()
        ]
        paths = [*children, *nested]
    found: dict[str, list[nn.Parameter]] = {"backbone": [], **{path: [] for path in paths}}
    for name, parameter in network.named_parameters():
        part = max((p for p in found if name.startswith(f"{p}.")), key=len, default=None)
        if part is not None:
            found[part].append(parameter)
    if empty := [path for path in named if not found[path]]:
        raise ConfigError(
            f"model.agvm: modules: {empty[0]!r} names no module with parameters of its own; parts "
            f"here: {[name for name, _ in network.named_children()]} and those below them"
        )
    return {path: parameters for path, parameters in found.items() if parameters}


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first and the second half of the images, of each task of the step.

    Raises:
        ConfigError: the batch has an odd number of images.
    """
    count = len(batch.keys)
    if count % 2:
        raise ConfigError(
            f"model.agvm: a batch of {batch.task} has {count} images, which cannot be halved; set "
            "data.batch_size to an even number, or accumulate an even number of micro-batches"
        )
    others = [halves(other) for other in batch.others]
    return tuple(
        replace(
            batch,
            **{
                name: _cut(getattr(batch, name), part)
                for name in ("keys", "images", "teacher_images", "target", "seeds")
            },
            others=[pair[n] for pair in others],
        )
        for n, part in enumerate((slice(0, count // 2), slice(count // 2, count)))
    )  # type: ignore[return-value]


def _cut(value: Any, part: slice) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor | list):
        return value[part]
    return replace(value, **{f.name: _cut(getattr(value, f.name), part) for f in fields(value)})
