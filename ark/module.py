"""The LightningModule: its training step reads like the algorithm of Ark and Foundation X."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ark.agvm import AGVMConfig
from ark.balance import BalanceFactory
from ark.checkpoint import check_same
from ark.consistency import Agreement, carries_gradient
from ark.cycle import Cycle, Position, Unit
from ark.distributed import ranks
from ark.growing import Growth, Source, check_trained, grow
from ark.hierarchy import Hierarchy
from ark.joint import JointTraining
from ark.locks import Locks, check_phase
from ark.network import Network
from ark.ontology import Ontology
from ark.optim import check_covered, clip_by_task, parameter_groups
from ark.penalty import NormPenalty
from ark.pseudo import PseudoLabels, fill, lacking, pseudo_by_task, share_filled
from ark.schedules import Constant, Schedule, WarmupCosine
from ark.scores import check_metrics
from ark.surgery import Surgery
from ark.teacher import Teacher, Teaching
from ark.tracking.numbers import StepNumbers
from ark.types import Batch, ConfigError, Target, TaskSpec
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


class ArkModule(JointTraining):
    """Student, teacher and the cycle of phases.

    Args:
        tasks: what to build heads for; comes from the datasets.
        cycle: the plan; comes from the recipe and the datasets' sizes.
        image_size: side of the square input in pixels.
        backbone: which timm model, from which start.
        projector: between the pooled vector and the classification heads; none if null.
        optimizer: torch optimiser, or one of timm.optim; AdamW by default. Its lr and weight_decay
            apply unless `lr_scale` says otherwise.
        lr_scale: factors of the rate by module path, such as {"backbone": 0.1}.
        layer_decay: each layer of the backbone has this times the rate of the next one.
        lr_schedule: factor of the rate by what `lr_clock` counts.
        lr_clock: "step", "phase", "pass" (all phases of a task, one after the other) or "cycle".
        clip: largest norm of the network's gradient, by task key or task kind; others: trainer's
            gradient_clip_val. Where several tasks train at once the least counts.
        norm_penalty: by module path, a weight of the sum of its parameters' norms in the loss of
            the tasks that use it.
        momentum: of the teacher's moving average.
        teacher_update: after every "step", or at the end of every "phase", "pass" (all phases of a
            task, one after the other) or "cycle". `momentum` and `consistency` count in the same.
        balance: weights of the tasks' losses: `ark.balance`'s Fixed, Uncertainty, GradNorm or
            DynamicWeightAverage.
        surgery: where several tasks train in one step, how their conflicts are mended:
            `ark.surgery`'s PCGrad or CAGrad.
        agvm: for large batches: the rate of each module scaled by the variance of its gradient.
        ontology: YAML that says which classes mean the same, and which imply which (see
            `ark.ontology`); the report has a table by concept then.
        hierarchy: weight of a penalty where a class is more probable than a class of the same
            head that it implies; needs `ontology`.
        momentum_by_length: the momentum is that of an update after the mean number of steps; after
            more the teacher moves further, after fewer less (`ark.teacher.by_length`). Without it
            the smallest dataset's pass moves it as far as the largest's.
        consistency: weight w of the consistency loss; the task's loss weighs 1 - w.
        agreement: what student and teacher are compared on, and by which distance.
        pseudo_labels: by task key or kind: labels that nobody gave are the teacher's, where it is
            sure; none by default.
        seed: of everything random in the network (dropout, drop-path), by step.
    """

    def __init__(
        self,
        tasks: list[TaskSpec],
        cycle: Cycle,
        image_size: int = 224,
        backbone: BackboneConfig = BackboneConfig(),
        projector: ProjectorConfig | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scale: dict[str, float] | None = None,
        layer_decay: float = 1.0,
        lr_schedule: Schedule = WarmupCosine(),  # noqa: B008 - frozen
        lr_clock: Unit = "step",
        clip: dict[str, float] | None = None,
        norm_penalty: dict[str, float] | None = None,
        momentum: Schedule = Constant(0.99),  # noqa: B008 - frozen
        teacher_update: Unit = "step",
        consistency: Schedule = Constant(0.5),  # noqa: B008 - frozen
        agreement: Agreement = Agreement(),  # noqa: B008 - frozen
        pseudo_labels: dict[str, PseudoLabels] | None = None,
        momentum_by_length: bool = False,
        balance: BalanceFactory | None = None,
        surgery: Surgery | None = None,
        agvm: AGVMConfig | None = None,
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
        self.growth = Growth()  # what it took from another run's weights
        self.teacher = Teacher(self.network)
        self.cycle, self.seed = cycle, seed
        self.locks = Locks(self.network)
        check_metrics(self.network)
        for phase in cycle.phases:
            check_phase(self.network, phase)
        # no default in the signature: jsonargparse would hand AdamW's weight decay on to an SGD
        self._optimizer = optimizer or torch.optim.AdamW
        self._lr_scale, self._layer_decay = lr_scale or {}, layer_decay
        self._lr_schedule, self._lr_clock = lr_schedule, lr_clock
        self._clip = clip_by_task(tasks, clip or {})
        self.norm_penalty = NormPenalty(self.network, norm_penalty or {})
        self.teaching = Teaching(cycle, teacher_update, momentum, consistency, momentum_by_length)
        self.ontology = Ontology.load(ontology) if ontology else None
        self.hierarchy = Hierarchy(tasks, self.ontology, hierarchy)
        self.join(balance, surgery, agvm)
        self.agreement = agreement
        self.settings: dict[str, Any] = {}  # of the recipe, which a resumed run must share
        self._numbers = StepNumbers()
        agreement.check(self.network.heads_by_key().values())
        self.pseudo_labels = pseudo_by_task(tasks, pseudo_labels or {})

    def grow_from(self, source: Source, names: Mapping[str, str | None]) -> None:
        """Takes what fits of another run's weights; the teacher is the student again.

        Args:
            names: see `ark.growing.grow`.

        Raises:
            ConfigError: see there; or what starts at random is used and never trained.
        """
        self.growth = grow(self.network, source, names)
        check_trained(self.network, self.cycle.phases, self.growth)
        self.start = self.growth.start
        self.teacher.update(self.network, 0.0)

    # -- training ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        at = self.cycle.at(self.global_step)
        found = [part.task for part in batch.parts]
        if found != at.phase.members:
            raise RuntimeError(
                f"step {self.global_step} is of {at.phase.members}, but the loader gave batches of "
                f"{found}: loader and cycle disagree"
            )
        return self.joint_loss(batch, at, batch_idx)

    def task_loss(self, batch: Batch, at: Position) -> Tensor:
        result = self.compute(batch, at)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if at.steps_of(batch.task) % every == 0:
            weight = {"weight": self.balance.weight(batch.task)} if self.balance.changes else {}
            self._numbers.add(batch.task, {**result.numbers, **weight})
        return result.total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._numbers.log(self.loggers, self.global_step)
        super().on_before_optimizer_step(optimizer)

    def compute(self, batch: Batch, at: Position) -> StepResult:
        """(1 - w) * task loss + w * consistency with the teacher."""
        head = self.network.head(batch.task)
        target = self.target_of(batch, at)
        features, output = self.network.run(batch.task, batch.images, target)
        losses = head.loss(output, target)
        task = torch.stack(list(losses.values())).sum()
        share = ranks.share(len(batch.images), batch.images.device)
        if self.hierarchy.speaks_of(batch.task):
            losses["hierarchy"] = share * self.hierarchy(batch.task, head.predict(output))
            task = task + losses["hierarchy"]
        weight = self.teaching.weight_at(at)
        total = (1 - weight) * task
        if (price := self.norm_penalty(batch.task)) is not None:
            losses["norm_penalty"] = price
            total = total + price
        names = self.agreement.names(head)
        student = head.consistency(features, output, names) if weight > 0 else {}
        if carries_gradient(student):
            teacher = self.teacher_targets(batch, output)
            agreement = share * self.agreement.loss(head, student, teacher)
            losses["consistency"] = agreement
            total = total + weight * agreement
        numbers = {name: value.detach() for name, value in losses.items()}
        if target is not batch.target:
            numbers["pseudo_labels"] = share_filled(batch.target, target)
        return StepResult(total, {**numbers, "loss": total.detach()})

    @torch.no_grad()
    def teacher_targets(self, batch: Batch, student: Any) -> dict[str, Tensor]:
        """The teacher's side of the comparison, on its own view of the batch.

        Args:
            student: the student's output.
        """
        network = self.teacher.network
        head = network.head(batch.task)
        features, output = network.run(batch.task, teacher_view(batch), like=student)
        return head.consistency(features, output, self.agreement.names(head))

    def target_of(self, batch: Batch, at: Position) -> Target:
        """The batch's target, with what the teacher knows of labels that nobody gave."""
        config = self.pseudo_labels.get(batch.task)
        if config is None or not config.begun(at.step, self.cycle.total_steps):
            return batch.target
        together = ranks.sharded(self.teacher.network.backbone)  # whatever a rank's own batch lacks
        if not (together or lacking(batch.target)):
            return batch.target
        prediction = self.teacher.network.predict(batch.task, teacher_view(batch))
        return fill(batch.target, prediction, config)

    def update_teacher(self, finished: Position) -> None:
        """Called once after every optimiser step; moves the teacher where the plan says so."""
        if self.teaching.moves(finished):
            self.teacher.update(self.network, self.teaching.momentum_at(finished))

    def configure_model(self) -> None:
        """Before the optimiser is made, strategies that shard do it here."""
        strategy: Any = self.trainer.strategy
        if hasattr(strategy, "shard"):
            strategy.shard(self)
            self.locks = Locks(self.network)  # of the parameters as they are now

    def configure_optimizers(self) -> Any:
        defaults = self._optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults
        groups = parameter_groups(
            self.network,
            defaults["lr"],
            self._lr_scale,
            defaults.get("weight_decay", 0.0),
            self._layer_decay,
        )
        optimizer = self._optimizer(self.joint_groups(groups, defaults["lr"]))
        check_covered(nn.ModuleDict({"network": self.network, "balance": self.balance}), optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._rate), "interval": "step"},
        }

    def _rate(self, step: int) -> float:
        """The factor of the rate in optimiser step `step`, which may be one past the last."""
        at = self.cycle.at(min(step, self.cycle.total_steps - 1))
        return self._lr_schedule(at.count(self._lr_clock), self.cycle.total(self._lr_clock))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning asks before each optimiser step."""
        members = self.cycle.at(self.global_step).phase.members
        by_value = gradient_clip_algorithm == "value"
        limits = [
            limit
            for task in members
            if (limit := self._clip.get(task, None if by_value else gradient_clip_val))
        ]
        if limits:  # not through Lightning, which refuses another limit than the trainer's
            strategy: Any = self.trainer.strategy
            clip = getattr(strategy, "clip_norm", nn.utils.clip_grad_norm_)
            clip(self.network.parameters(), min(limits))
        elif by_value:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- what it is -------------------------------------------------------------------------

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
            f"{p.name} {p.state} {n}{p.when}"
            for p, n in zip(self.cycle.phases, self.cycle.lengths, strict=True)
        ]
        plan = {"cycles": self.cycle.cycles, "phases": phases, "seed": self.seed}
        return {**plan, **self.settings}

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


def teacher_view(batch: Batch) -> Tensor:
    """The images that the teacher sees."""
    if batch.teacher_images is None:
        raise RuntimeError(f"a training batch of {batch.task} has no teacher view")
    return batch.teacher_images
