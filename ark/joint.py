"""The half of the LightningModule that joins what tasks want of the shared weights.

Weights of losses, gradient surgery where tasks step together, and rates scaled by the variance of
gradients; each is off by default, and then a step is the plain sum of its losses.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ark.agvm import AGVM, AGVMConfig, halves, module_parameters
from ark.balance import Balance, BalanceFactory, DynamicWeightAverage, Fixed
from ark.cycle import Cycle, Position
from ark.evaluation import Evaluation
from ark.optim import check_names_parameters
from ark.surgery import Surgery
from ark.types import Batch, ConfigError

log = logging.getLogger("ark")


class JointTraining(Evaluation):
    """From the losses of a step's tasks to one, and what is learned from its gradient."""

    cycle: Cycle
    balance: Balance

    def join(
        self, balance: BalanceFactory | None, surgery: Surgery | None, agvm: AGVMConfig | None
    ) -> None:
        """Called once, when the network is built."""
        self.balance = (balance or Fixed)(list(self.network.tasks.values()))
        if self.balance.layer is not None:
            check_names_parameters("model.balance.layer", self.network, self.balance.layer)
            self._layer = self.network.get_submodule(self.balance.layer)
        self.surgery = surgery
        named = module_parameters(self.network, agvm.modules) if agvm else {}
        self.agvm = AGVM(agvm, named) if agvm else None
        self.task_losses: dict[str, Tensor] = {}  # of a concurrent step, with their graphs
        self._losses: dict[str, list[Tensor]] = {}  # of this optimiser step, by micro-batch
        self._norms: dict[str, list[Tensor]] = {}
        self._micro = 0

    @abstractmethod
    def task_loss(self, batch: Batch, at: Position) -> Tensor:
        """What the batch's own task wants minimised."""

    def on_fit_start(self) -> None:
        accumulated = self.trainer.accumulate_grad_batches
        if self.agvm is not None and accumulated > 1 and accumulated % 2:
            raise ConfigError(
                f"model.agvm compares two halves of a step, but trainer.accumulate_grad_batches is "
                f"{accumulated}; make it even, or 1"
            )
        self._check_joint()

    def _check_joint(self) -> None:
        alone = self.trainer.accumulate_grad_batches == 1
        halves_single = self.surgery is not None or (self.agvm is not None and alone)
        if self.trainer.precision == "16-mixed" and halves_single:
            raise ConfigError(
                "trainer.precision 16-mixed: model.surgery and model.agvm take gradients of single "
                "losses, which no scaler keeps from vanishing; use bf16-mixed"
            )
        if self.surgery is not None and all(len(p.members) == 1 for p in self.cycle.phases):
            log.warning("model.surgery: no phase trains several tasks at once; it does nothing")
        if isinstance(self.balance, DynamicWeightAverage) and self.cycle.cycles < 3:
            log.warning(
                "model.balance: DynamicWeightAverage compares two finished cycles; in a plan of %d "
                "all weights stay 1",
                self.cycle.cycles,
            )
        warmup, total = self.agvm.config.warmup if self.agvm else 0, self.cycle.total_steps
        if warmup >= total:
            raise ConfigError(
                f"model.agvm: warmup {warmup}, but the plan has {total} steps: rates would never "
                "be scaled; lower it"
            )

    def _estimates(self) -> bool:
        at = self.cycle.at(self.global_step)
        return self.agvm is not None and self.agvm.estimates(at.step, at.task_step)

    def joint_loss(self, batch: Batch, at: Position, batch_idx: int) -> Tensor:
        """The loss of a micro-batch with all its tasks."""
        accumulated = self.trainer.accumulate_grad_batches
        self._micro = batch_idx % accumulated
        if self.agvm is None or not self._estimates() or accumulated > 1:
            return self._joined(batch, at)
        one, other = halves(batch)
        first = self.agvm.first_half(self._joined(one, at) / 2, self.parameters(), self._mean)
        return first + self._joined(other, at) / 2

    def _joined(self, batch: Batch, at: Position) -> Tensor:
        losses = {part.task: self.task_loss(part, at) for part in batch.parts}
        weighed = {task: self.balance.weigh(task, loss) for task, loss in losses.items()}
        for task, loss in losses.items():
            self._losses.setdefault(task, []).append(loss.detach())
        if len(weighed) == 1:
            return weighed[batch.task]
        self.task_losses = weighed
        if self.balance.layer is not None:
            self._measure(weighed)
        if self.surgery is not None:
            return self.surgery.combine(list(weighed.values()), self.parameters())
        return torch.stack(list(weighed.values())).sum()

    def _measure(self, losses: Mapping[str, Tensor]) -> None:
        """Where tasks step together, each gradient in the layer takes a backward of its own."""
        free = [p for p in self._layer.parameters() if p.requires_grad]
        for task, loss in losses.items() if free else ():
            found = torch.autograd.grad(loss, free, retain_graph=True, allow_unused=True)
            norm = nn.utils.get_total_norm([g for g in found if g is not None])
            self._norms.setdefault(task, []).append(norm)

    def on_after_backward(self) -> None:
        half = 2 * (self._micro + 1) == self.trainer.accumulate_grad_batches
        if self.agvm is not None and half and self._estimates():
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            self.agvm.snapshot(self._mean, scaler.get_scale() if scaler else 1.0)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The step's gradient is whole, and not clipped yet."""
        if self.balance.observes:
            self._observe()
        self._losses, self._norms, self.task_losses = {}, {}, {}
        if self.agvm is not None:
            self.agvm.scale_rates(optimizer)
            if self._estimates():
                self._log_agvm(self.agvm)

    def _log_agvm(self, agvm: AGVM) -> None:
        """`agvm/<module>/variance` and `/factor`, of the modules that moved."""
        values = {f"agvm/{name}/variance": value for name, value in agvm.variances.items()}
        values |= {f"agvm/{name}/factor": agvm.factors[name] for name in agvm.variances}
        for logger in self.loggers if values else ():
            logger.log_metrics(values, step=self.global_step)

    def _observe(self) -> None:
        if self.balance.layer is not None and len(self._losses) == 1:
            found = [p.grad for p in self._layer.parameters() if p.grad is not None]
            if found:
                (task,) = self._losses
                self._norms = {task: [nn.utils.get_total_norm(found)]}
        losses, norms = (
            {task: self._mean(torch.stack(values).mean()) for task, values in seen.items()}
            for seen in (self._losses, self._norms)
        )
        self.balance.observe(losses, norms)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.agvm is not None:
            self.agvm.restore_rates()  # before the scheduler sets those of the next step

    def joint_groups(self, groups: list[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
        """Parameter groups of the network, with what the balance learns, and cut by module where
        rates are scaled."""
        if learned := list(self.balance.parameters()):
            own = {"params": learned, "lr": rate, "weight_decay": 0.0, "name": "balance"}
            groups = [*groups, own]
        return self.agvm.split(groups) if self.agvm is not None else groups

    def _mean(self, value: Tensor) -> Tensor:
        """Over the ranks."""
        return self.trainer.strategy.reduce(value, reduce_op="mean")  # type: ignore[return-value]
