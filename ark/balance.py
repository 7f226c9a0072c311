"""Weights of the tasks' losses: fixed, learned, or from how the tasks fare.

What a balance learns or measures lies in its parameters and buffers, so a checkpoint carries it and
a resumed run goes on exactly. T is the number of tasks. Nothing here waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ark.types import KINDS, ConfigError, TaskSpec


class Balance(nn.Module, ABC):
    """Base of all. A recipe names one as `model.balance`, a class_path with init_args.

    In each optimiser step the tasks that train are weighed, and once at its end observed; so the
    weights stay the same while gradients accumulate.

    Where one task trains at a time, a weight is the size of its step against the others'. Adam
    divides by the size of the gradient: there weights act on parts that tasks share, not on heads.

    Args:
        tasks: of the run.

    Attributes:
        layer: path of a module of the network; `observe` wants the norm of the gradient there.
            None: it wants none.
        observes: whether `observe` learns anything.
        changes: whether weights change in training; then they are logged beside the losses.
    """

    layer: str | None = None
    observes: bool = True
    changes: bool = True

    def __init__(self, tasks: Sequence[TaskSpec]) -> None:
        super().__init__()
        self.index = {task.key: n for n, task in enumerate(tasks)}

    @abstractmethod
    def weight(self, task: str) -> Tensor:
        """() of the device: what the task's loss counts now, without a gradient."""

    def weigh(self, task: str, loss: Tensor) -> Tensor:
        """(), () -> (): the loss that is minimised."""
        return self.weight(task) * loss

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """Once a step, when its gradient is known.

        Args:
            losses: () each, by the tasks that trained: before weighing, the mean over ranks and
                micro-batches. One that is not finite is passed over.
            norms: () each: the L2 norm of the gradient of the task's weighed loss in `layer`; a
                task is missing where `layer` is locked.
        """

    def end_cycle(self) -> None:
        """Once at the end of every cycle of the plan."""


BalanceFactory = Callable[[Sequence[TaskSpec]], Balance]


class Fixed(Balance):
    """The same at every step.

    Args:
        weights: by task key or task kind, a key's own before that of its kind; all others 1.

    Raises:
        ConfigError: a name is no task of the run and no kind, or a weight is below 0.
    """

    observes = False
    changes = False
    weights: Tensor

    def __init__(
        self, tasks: Sequence[TaskSpec], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(tasks)
        given = weights or {}
        known = [*KINDS, *self.index]
        for name, weight in given.items():
            if name not in known or not weight >= 0:
                raise ConfigError(
                    f"model.balance: weights: {name}: {weight}; expected a number of at least 0 "
                    f"for one of {known}"
                )
        of_task = [float(given.get(task.key, given.get(task.kind, 1.0))) for task in tasks]
        # configuration, not state: a run that goes on follows its recipe
        self.register_buffer("weights", torch.tensor(of_task), persistent=False)

    def weight(self, task: str) -> Tensor:
        return self.weights[self.index[task]]


class Uncertainty(Balance):
    """exp(-s) L + s / 2 with a learned s a task, the logarithm of its noise's variance.

    Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10; of a squared error their ½ is part
    of the loss. s settles where exp(-s) = 1 / (2 L): each loss counts about one half.

    Each s is a parameter of its own, so that the optimiser leaves it alone in other tasks' steps.
    They must be in a group of the optimiser, without weight decay: that would pull weights to 1.

    Args:
        start: s at the beginning; 0 is a weight of 1.
    """

    observes = False

    def __init__(self, tasks: Sequence[TaskSpec], start: float = 0.0) -> None:
        super().__init__(tasks)
        self.log_variances = nn.ParameterDict(
            {key: nn.Parameter(torch.tensor(float(start))) for key in self.index}
        )

    def weight(self, task: str) -> Tensor:
        return torch.exp(-self.log_variances[task].detach())

    def weigh(self, task: str, loss: Tensor) -> Tensor:
        s = self.log_variances[task]
        return torch.exp(-s) * loss + s / 2


class GradNorm(Balance):
    """Each task moves the shared layer alike, those that learn slowly more (arXiv 1711.02257).

    The paper wants the gradient norms w_i n_i in proportion to r_i^alpha, where n_i is the norm
    before weighing and r_i the loss against its first value, over the mean of that of all tasks.
    It sees all tasks in each step and takes one gradient step on w. Here a task may train alone, so
    n_i and the loss are moving averages over the task's own steps, and w is set to what the
    paper's steps approach: w_i = T (r_i^alpha / n_i) / sum_j (r_j^alpha / n_j), over the tasks that
    trained so far; the weight of the others is 1.

    Args:
        alpha: how much more those that learn slowly move the layer; 0: all alike.
        momentum: of the moving averages.
        layer: path of the shared module. Of a task that trains alone the gradient is there
            anyway. In concurrent phases each task costs a backward pass as far as this layer, so a
            late one saves time; it must be one that every task uses.

    Raises:
        ConfigError: alpha is below 0, or momentum is not in [0, 1).
    """

    norms: Tensor  # (T,) n; NaN: not seen yet
    losses: Tensor  # (T,)
    first: Tensor  # (T,) the first loss

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        alpha: float = 1.5,
        momentum: float = 0.9,
        layer: str = "backbone",
    ) -> None:
        super().__init__(tasks)
        if alpha < 0 or not 0 <= momentum < 1:
            raise ConfigError(
                f"model.balance: alpha {alpha}, momentum {momentum}; expected alpha of at least 0 "
                "and momentum in [0, 1)"
            )
        self.alpha, self.momentum, self.layer = alpha, momentum, layer
        for name in ("norms", "losses", "first"):
            self.register_buffer(name, torch.full((len(tasks),), torch.nan))

    def weights(self) -> Tensor:
        """(T,) of all tasks; the mean over those seen is 1."""
        seen = (self.norms > 0) & (self.first > 0)
        progress = self.losses / self.first  # r but for the mean, which cancels
        wanted = torch.where(seen, progress**self.alpha / self.norms, 0)
        return torch.where(seen, wanted / wanted.sum() * seen.sum(), 1)

    def weight(self, task: str) -> Tensor:
        return self.weights()[self.index[task]]

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        weights = self.weights()  # of this step, before any average moves
        for task, loss in losses.items():
            n = self.index[task]
            starts = self.first[n].isnan() & loss.isfinite()
            self.first[n] = torch.where(starts, loss, self.first[n])
            self._move(self.losses, n, loss)
        for task, norm in norms.items():
            n = self.index[task]
            self._move(self.norms, n, norm / weights[n])

    def _move(self, averages: Tensor, n: int, value: Tensor) -> None:
        old = averages[n]
        new = torch.where(old.isnan(), value, self.momentum * old + (1 - self.momentum) * value)
        averages[n] = torch.where(value.isfinite(), new, old)


class DynamicWeightAverage(Balance):
    """Tasks whose loss falls slowly count more (Liu et al. 2019, arXiv 1803.10704, equation 7).

    w_i = T exp(r_i / temperature) / sum_j exp(r_j / temperature), r_i the mean loss of the last
    cycle over that of the one before. A task that trained in fewer than two cycles has r = 1; one
    that a cycle leaves out keeps its r.

    Args:
        temperature: the larger, the more alike.

    Raises:
        ConfigError: temperature is not above 0.
    """

    sums: Tensor  # (T,) of the losses of this cycle
    counts: Tensor  # (T,)
    last: Tensor  # (T,) mean loss of the task's last whole cycle; NaN: none
    before: Tensor  # (T,) of the one before

    def __init__(self, tasks: Sequence[TaskSpec], temperature: float = 2.0) -> None:
        super().__init__(tasks)
        if not temperature > 0:
            raise ConfigError(f"model.balance: temperature {temperature}; expected it above 0")
        self.temperature = temperature
        for name, start in (("sums", 0.0), ("counts", 0.0), ("last", torch.nan)):
            self.register_buffer(name, torch.full((len(tasks),), start))
        self.register_buffer("before", torch.full((len(tasks),), torch.nan))

    def weights(self) -> Tensor:
        """(T,) of all tasks; their mean is 1."""
        ratio = self.last / self.before
        ratio = torch.where(ratio.isfinite(), ratio, 1)
        return len(ratio) * torch.softmax(ratio / self.temperature, dim=0)

    def weight(self, task: str) -> Tensor:
        return self.weights()[self.index[task]]

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        for task, loss in losses.items():
            n, finite = self.index[task], loss.isfinite()
            self.sums[n] += torch.where(finite, loss, 0)
            self.counts[n] += finite

    @torch.no_grad()
    def end_cycle(self) -> None:
        trained, mean = self.counts > 0, self.sums / self.counts
        self.before.copy_(torch.where(trained, self.last, self.before))
        self.last.copy_(torch.where(trained, mean, self.last))
        self.sums.zero_()
        self.counts.zero_()
