"""How hard each task pulls at the shared weights, and whether it pulls where the others do."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from ark.optim import check_names_parameters
from ark.surgery import flat
from ark.types import ConfigError

WIDTH = 65_521  # of a sketch; prime, so that no channel count divides it


class GradientTelemetry(Callback):
    """Logs `gradient/<dataset>/<task>/norm` and `/cosine`, before clipping; of another part than
    the backbone under `gradient/<part>/`. Changes no training.

    The cosine is that to the running mean of all tasks' gradients. Gradients of earlier steps are
    kept as sketches: values get random signs and those whose places are equal modulo `WIDTH` are
    added up. That keeps inner products but for an error of about |a| |b| / 256, in 256 kB a task
    where a gradient may take 256 MB. The norm is exact.

    Where one task trains, its gradient is the step's. Where several do, `module.task_losses` has
    their losses, by task, with their graphs: each costs a backward pass in sampled steps.

    Args:
        every: steps of the same task between samples.
        momentum: of the running mean, from sample to sample.
        pairs: also log `/cosine/<dataset>/<task>`, that to each other task's last sample.
        part: path of the network's module whose weights are meant.

    Raises:
        ConfigError: `every` is below 1, or momentum is not in [0, 1).
    """

    def __init__(
        self, every: int = 50, momentum: float = 0.9, pairs: bool = False, part: str = "backbone"
    ) -> None:
        if every < 1 or not 0 <= momentum < 1:
            raise ConfigError(
                f"GradientTelemetry: every {every}, momentum {momentum}; expected a step at least "
                "and a momentum in [0, 1)"
            )
        self.every, self.momentum, self.pairs, self.part = every, momentum, pairs, part
        self._name = "gradient" if part == "backbone" else f"gradient/{part}"
        self._signs: Tensor | None = None
        self._mean: Tensor | None = None  # (WIDTH,) sketch of the running mean
        self._last: dict[str, Tensor] = {}  # by task (WIDTH,) of the last sample
        self._step: dict[str, Tensor] = {}  # of tasks that train together, while they accumulate

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__} of {self.part}"

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        check_names_parameters("GradientTelemetry.part", module.network, self.part)

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        parameters = self._parameters(module)
        free = [p for p in parameters if p.requires_grad]
        if not _together(trainer, module) or not free:
            return
        for task in self._due(trainer, module):
            own = module.task_losses[task] / trainer.accumulate_grad_batches
            found = torch.autograd.grad(own, free, retain_graph=True, allow_unused=True)
            of = {id(p): gradient for p, gradient in zip(free, found, strict=True)}
            row = flat(parameters, [of.get(id(p)) for p in parameters])
            self._step[task] = row if task not in self._step else self._step[task] + row

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: Any, optimizer: Optimizer
    ) -> None:
        parameters = self._parameters(module)
        if _together(trainer, module):
            reduce = trainer.strategy.reduce  # DDP saw only the sum of the losses
            found = {task: reduce(row, reduce_op="mean") for task, row in self._step.items()}
            self._step = {}
        elif any(p.grad is not None for p in parameters):
            due = self._due(trainer, module)
            found = {task: flat(parameters, [p.grad for p in parameters]) for task in due}
        else:
            found = {}
        if found:
            self._log(found, module, trainer.global_step)

    def _log(self, found: dict[str, Tensor], module: Any, step: int) -> None:
        numbers = self._compare({task: self._sketch(row) for task, row in found.items()})
        norms = {f"{self._name}/{task}/norm": row.norm() for task, row in found.items()}
        values = {name: float(value) for name, value in {**norms, **numbers}.items()}
        for logger in module.loggers:
            logger.log_metrics(values, step=step)

    def _parameters(self, module: Any) -> list[nn.Parameter]:
        return list(module.network.get_submodule(self.part).parameters())

    def _due(self, trainer: pl.Trainer, module: Any) -> list[str]:
        """The tasks of this step that are sampled in it."""
        at = module.cycle.at(trainer.global_step)
        ran = zip(at.phase.members, at.task_steps, strict=True)
        return [task for task, steps in ran if steps % self.every == 0]

    def _sketch(self, row: Tensor) -> Tensor:
        """(P,) -> (WIDTH,)."""
        if self._signs is None:
            generator = torch.Generator().manual_seed(0)  # of the CPU: the same on every device
            bits = torch.randint(0, 2, row.shape, dtype=torch.int8, generator=generator)
            self._signs = (2 * bits - 1).to(row.device)
        signed = torch.nn.functional.pad(row * self._signs, (0, -len(row) % WIDTH))
        return signed.view(-1, WIDTH).sum(dim=0)

    def _compare(self, sketches: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cosines, by the name they are logged under; then the sketches enter the mean."""
        numbers = {}
        for task, sketch in sketches.items():
            others = {f"/{other}": last for other, last in self._last.items() if other != task}
            past = {"": self._mean, **(others if self.pairs else {})}
            for name, one in past.items():
                if one is not None:
                    cosine = torch.cosine_similarity(sketch, one.to(sketch), dim=0)
                    numbers[f"{self._name}/{task}/cosine{name}"] = cosine
        for task, sketch in sketches.items():
            old = sketch if self._mean is None else self._mean.to(sketch)
            self._mean = self.momentum * old + (1 - self.momentum) * sketch
            if self.pairs:
                self._last[task] = sketch
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._mean, self._last = state_dict["mean"], state_dict["last"]


def _together(trainer: pl.Trainer, module: Any) -> bool:
    return len(module.cycle.at(trainer.global_step).phase.members) > 1
