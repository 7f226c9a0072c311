"""The LightningModule: its training step reads like the algorithm of Ark and Foundation X."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ark.checkpoint import check_same
from ark.consistency import carries_gradient, consistency_loss
from ark.cycle import Cycle, Position
from ark.hierarchy import Hierarchy
from ark.locks import Locks, check_phase
from ark.network import Network
from ark.ontology import Ontology
from ark.optim import check_covered, parameter_groups
from ark.schedules import Constant, Schedule, WarmupCosine
from ark.scores import WHO, Scores
from ark.teacher import Teacher
from ark.types import Batch, ConfigError, Prediction, TaskSpec
from ark.weights import load_initial

OptimizerFactory = Callable[[Iterable], Optimizer]


@dataclass(frozen=True)
class BackboneConfig:
    """Args:
    name: a timm model name.
    weights: the start: "random", "timm", "pip:PACKAGE" or a file (see `ark.weights`).
    args: further arguments of `timm.create_model`.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "random"
    args: dict[str, Any] | None = None


@dataclass(frozen=True)
class ProjectorConfig:
    """Args:
    width: of the embedding.
    hidden: Linear-ReLU-Linear instead of one Linear.
    """

    width: int = 1376
    hidden: bool = False


@dataclass
class StepResult:
    """What a training step found out; `total` is what is minimised."""

    total: Tensor
    numbers: dict[str, Tensor]  # detached, by the name they are logged under


class ArkModule(pl.LightningModule):
    """Student, teacher and the cycle of phases.

    Args:
        tasks: what to build heads for; comes from the datasets.
        cycle: the plan; comes from the recipe and the datasets' sizes.
        image_size: side of the square input in pixels.
        backbone: which timm model, from which start.
        projector: between the pooled vector and the classification heads; none if null.
        optimizer: torch optimiser; its lr and weight_decay apply unless `lr_scale` says otherwise.
        lr_scale: factors of the rate by module path, such as {"backbone": 0.1}.
        lr_schedule: factor of the rate by step.
        momentum: of the teacher's moving average.
        teacher_update: after every "step" or at the end of every "phase".
        ontology: YAML that says which classes mean the same, and which imply which (see
            `ark.ontology`); the report has a table by concept then.
        hierarchy: weight of a penalty where a class is more probable than a class of the same
            head that it implies; needs `ontology`.
        consistency: weight w of the consistency loss; the task's loss weighs 1 - w.
        seed: of everything random in the network (dropout, drop-path), by step.
    """

    def __init__(
        self,
        tasks: list[TaskSpec],
        cycle: Cycle,
        image_size: int = 224,
        backbone: BackboneConfig = BackboneConfig(),
        projector: ProjectorConfig | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        lr_scale: dict[str, float] | None = None,
        lr_schedule: Schedule = WarmupCosine(),  # noqa: B008 - frozen
        momentum: Schedule = Constant(0.99),  # noqa: B008 - frozen
        teacher_update: Literal["step", "phase"] = "step",
        consistency: Schedule = Constant(0.5),  # noqa: B008 - frozen
        ontology: str | None = None,
        hierarchy: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = Network(
            {"name": backbone.name, "image_size": image_size, "args": backbone.args},
            asdict(projector) if projector else None,
            tasks,
        )
        self.start = load_initial(self.network.backbone, backbone.name, backbone.weights)
        self.teacher = Teacher(self.network)
        self.cycle, self.seed = cycle, seed
        self.locks = Locks(self.network)
        for phase in cycle.phases:
            check_phase(self.network, phase)
        self._optimizer, self._lr_scale, self._lr_schedule = optimizer, lr_scale or {}, lr_schedule
        self.momentum, self.teacher_update, self.consistency = momentum, teacher_update, consistency
        self.ontology = Ontology.load(ontology) if ontology else None
        self.hierarchy = Hierarchy(tasks, self.ontology, hierarchy)
        self.scored: tuple[str, ...] = WHO  # whom an evaluation scores
        self.calibrating = False  # whether a validation lets the heads choose their thresholds
        self.draws = 0  # bootstrap draws of a test; 0: no intervals

    # -- training ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        at = self.cycle.at(self.global_step)
        if batch.task != at.phase.task:
            raise RuntimeError(
                f"step {self.global_step} is of {at.phase.task}, but the loader gave a batch of "
                f"{batch.task}: loader and cycle disagree"
            )
        result = self.compute(batch, at)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if at.task_step % every == 0:
            self._log_numbers(batch.task, result.numbers)
        return result.total

    def _log_numbers(self, task: str, numbers: dict[str, Tensor]) -> None:
        """`train/<dataset>/<task>/<loss>`, at the steps of that task only.

        Not self.log: Lightning repeats the last value of every task at each step of any task.
        """
        values = {f"train/{task}/{name}": float(value) for name, value in numbers.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def compute(self, batch: Batch, at: Position) -> StepResult:
        """(1 - w) * task loss + w * consistency with the teacher."""
        head = self.network.head(batch.task)
        features, output = self.network.run(batch.task, batch.images, batch.target)
        losses = head.loss(output, batch.target)
        task = torch.stack(list(losses.values())).sum()
        if self.hierarchy.speaks_of(batch.task):
            losses["hierarchy"] = self.hierarchy(batch.task, head.predict(output))
            task = task + losses["hierarchy"]
        weight = self.consistency(at.step, self.cycle.total_steps)
        total = (1 - weight) * task
        student = head.consistency(features, output) if weight > 0 else {}
        if carries_gradient(student):
            agreement = consistency_loss(student, self.teacher_targets(batch, output))
            losses["consistency"] = agreement
            total = total + weight * agreement
        numbers = {name: value.detach() for name, value in losses.items()}
        return StepResult(total, {**numbers, "loss": total.detach()})

    @torch.no_grad()
    def teacher_targets(self, batch: Batch, student: Any) -> dict[str, Tensor]:
        """The teacher's side of the comparison, on its own view of the batch.

        Args:
            student: the student's output.
        """
        if batch.teacher_images is None:
            raise RuntimeError(f"a training batch of {batch.task} has no teacher view")
        network = self.teacher.network
        features, output = network.run(batch.task, batch.teacher_images, like=student)
        return network.head(batch.task).consistency(features, output)

    def locked_parts(self, task: str, lock: list[str]) -> list[torch.nn.Module]:
        return [self.network.part(name, task) for name in lock]

    def update_teacher(self, finished: Position) -> None:
        """Called once after every optimiser step; moves the teacher where the plan says so."""
        if self.teacher_update == "step" or finished.ends_phase:
            momentum = self.momentum(finished.step, self.cycle.total_steps)
            self.teacher.update(self.network, momentum)

    def configure_optimizers(self) -> Any:
        defaults = self._optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults
        groups = parameter_groups(
            self.network, defaults["lr"], self._lr_scale, defaults.get("weight_decay", 0.0)
        )
        optimizer = self._optimizer(groups)
        check_covered(self.network, optimizer)
        total = self.cycle.total_steps
        scheduler = LambdaLR(optimizer, lambda step: self._lr_schedule(min(step, total), total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- evaluation -------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.scores = Scores(self.networks, self.scored, self.device)

    def on_test_epoch_start(self) -> None:
        self.scores = Scores(self.networks, self.scored, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Prediction]:
        return self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.scores.compute("val"))
        self._measure_doubt()
        if self.calibrating:
            self.scores.calibrate()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.scores.compute("test"))
        self._measure_doubt()

    def _measure_doubt(self) -> None:
        self.intervals = self.scores.intervals(self.draws) if self.draws else {}

    def evaluate(self, batch: Batch) -> dict[str, Prediction]:
        """Scores student and teacher on a batch; returns their predictions, by name."""
        predictions: dict[str, Prediction] = {}
        if not batch.keys:  # all of its samples were skipped
            return predictions
        for who in self.scored:
            predictions[who] = self.networks[who].predict(batch.task, batch.images)
            self.scores.update(who, batch, predictions[who])
        return predictions

    @property
    def networks(self) -> dict[str, Network]:
        return {"student": self.network, "teacher": self.teacher.network}

    @property
    def keys(self) -> list[str]:
        """The tasks' keys, in the order of the datasets."""
        return list(self.network.tasks)

    def summary(self, data: str) -> str:
        """What a run is about to do, for its first lines."""
        parts = {"backbone": self.network.backbone, "projector": self.network.projector}
        parts |= {f"shared {name}": part for name, part in self.network.shared.items()}
        parts |= {f"head {key}": head for key, head in self.network.heads_by_key().items()}
        sizes = ", ".join(
            f"{name} {count / 1e6:.2f}M"
            for name, part in parts.items()
            if (count := sum(p.numel() for p in part.parameters()))
        )
        return f"start: {self.start}\nparameters: {sizes}\n{data}\n{self.cycle.describe()}"

    # -- checkpoints ------------------------------------------------------------------------

    def plan_record(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that resumes it. Plain data."""
        phases = [
            f"{p.task} {p.state} {n}"
            for p, n in zip(self.cycle.phases, self.cycle.lengths, strict=True)
        ]
        return {"cycles": self.cycle.cycles, "phases": phases, "seed": self.seed}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ark"] = {
            "architecture": self.network.architecture,
            "plan": self.plan_record(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint.get("ark")
        if theirs is None:
            raise ConfigError("ckpt_path: this file is no checkpoint of an Ark run")
        check_same(theirs["architecture"], self.network.architecture)
        if self.trainer.state.fn == "fit":
            check_same(theirs["plan"], self.plan_record())
