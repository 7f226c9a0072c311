"""Gradient surgery: where several tasks step together, their conflict is mended before the sum.

K is the number of tasks in the step, P the number of values in the parameters that they share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from ark.types import ConfigError

Reduce = Callable[[Tensor], Tensor]
Gradients = Sequence[Tensor | None]  # of each parameter


class Surgery(ABC):
    """Joins the tasks' losses to one whose gradient is the combined one.

    g_k is the gradient of task k in the parameters that two or more tasks of the step use. The
    step goes along sum_k w_k g_k, where `weights` finds w from the inner products of the g_k.
    Parameters that one task alone uses keep its gradient; locked ones have none.

    The K x K inner products go to the host: one wait for the device in each concurrent step.
    """

    @abstractmethod
    def weights(self, gramian: Tensor) -> Tensor:
        """(K, K) float64 on the CPU, inner products of the tasks' gradients -> (K,) weights; all 1
        is the plain sum."""

    def combine(
        self,
        losses: Sequence[Tensor],
        parameters: Iterable[nn.Parameter],
        reduce: Reduce | None = None,
    ) -> Tensor:
        """K scalars -> one, of the value of their sum, whose backward gives the combined gradient.

        What follows (scaling, accumulation, DDP's mean, clipping) treats it as any loss. Under DDP
        the surgery is of each rank's own gradients, and the step their mean; `reduce` makes it
        exact for K times the traffic. While gradients accumulate, each micro-batch has its own.

        Args:
            losses: of the tasks, weighed. Their graphs stay, so that others can read them.
            parameters: all that the losses may reach, `module.parameters()`; what is locked
                (`requires_grad` False) is left alone.
            reduce: the mean over ranks, as `trainer.strategy.reduce` gives it: the surgery is then
                of the whole batch's gradients. (PCGrad's order is drawn by each rank.)
        """
        free = [p for p in parameters if p.requires_grad]
        if len(losses) == 1 or not free:
            return torch.stack(list(losses)).sum()
        # a backward pass, and sums of its precision, do not belong under autocast
        with torch.autocast(losses[0].device.type, enabled=False):
            found = [
                torch.autograd.grad(loss, free, retain_graph=True, allow_unused=True)
                for loss in losses
            ]
            gradients = self._mend(free, found, reduce)
        return given(torch.stack([loss.detach() for loss in losses]).sum(), gradients)

    def _mend(
        self, free: list[nn.Parameter], found: Sequence[Gradients], reduce: Reduce | None
    ) -> dict[nn.Parameter, Tensor]:
        """The gradient of each parameter, from those of each task."""
        mended: dict[nn.Parameter, Tensor] = {}
        shared = []
        for n, parameter in enumerate(free):
            own = [gradient for task in found if (gradient := task[n]) is not None]
            if len(own) == 1:
                mended[parameter] = own[0]
            elif own:
                shared.append(n)
        if shared:
            rows = torch.stack(
                [flat([free[n] for n in shared], [t[n] for n in shared]) for t in found]
            )
            joined = self._join(reduce(rows) if reduce else rows)
            parts = joined.split([free[n].numel() for n in shared])
            mended |= {
                free[n]: part.view_as(free[n]) for n, part in zip(shared, parts, strict=True)
            }
        return mended

    def _join(self, rows: Tensor) -> Tensor:
        """(K, P) -> (P,)."""
        gramian = (rows @ rows.T).to("cpu", torch.float64)
        if not gramian.isfinite().all():  # the sum is not finite either: a scaler skips the step
            return rows.sum(dim=0)
        return self.weights(gramian).to(rows) @ rows


@dataclass(frozen=True)
class PCGrad(Surgery):
    """From each gradient its part against another is projected away, the others in random order
    (Yu et al. 2020, arXiv 2001.06782, algorithm 1; torchjd's). The results are added."""

    def weights(self, gramian: Tensor) -> Tensor:
        from torchjd.aggregation import PCGradWeighting  # half a second, only where it is used

        return PCGradWeighting()(gramian)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CAGrad(Surgery):
    """The direction near the mean that serves the worst-off task best (Liu et al. 2021, arXiv
    2110.14048, algorithm 1): the largest smallest <g_k, d> with |d - g0| <= c |g0|, g0 the mean.

    Times K, so that c = 0 is the plain sum.

    Args:
        c: radius around the mean as a share of its length, in [0, 1).

    Raises:
        ConfigError: c is out of range.
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise ConfigError(f"model.surgery: c {self.c}; expected a number in [0, 1)")

    def weights(self, gramian: Tensor) -> Tensor:
        # torchjd's needs cvxpy: 240 MB of solvers and 14 ms a step, this takes 1 (K = 5)
        size, count = gramian.diagonal().mean().item(), len(gramian)
        if size == 0:
            return torch.ones(count, dtype=gramian.dtype)
        inner = gramian.numpy() / size
        mean = np.full(count, 1 / count)
        radius = self.c * np.sqrt(max(mean @ inner @ mean, 0.0))

        def length(w: np.ndarray) -> float:  # of g_w = sum_k w_k g_k
            return float(np.sqrt(max(w @ inner @ w, 0.0)) + 1e-12)

        dual = minimize(
            lambda w: w @ inner @ mean + radius * length(w),
            mean,
            jac=lambda w: inner @ mean + radius * (inner @ w) / length(w),
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 200},
        )
        # shorter, it is the rounding of a float32 Gramian and has no direction
        shortest = 1e-3
        return torch.from_numpy(1 + count * radius / max(length(dual.x), shortest) * dual.x)


def given(value: Tensor, gradients: dict[nn.Parameter, Tensor]) -> Tensor:
    """A scalar of this value whose backward gives each parameter this gradient."""
    return _Given.apply(value, list(gradients.values()), *gradients)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(scale * gradient for gradient in ctx.saved_tensors)


def flat(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """All gradients as one vector, with zeros where a parameter has none."""
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g.detach()).flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )
