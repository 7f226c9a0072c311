"""Head: everything that is particular to one task of one dataset.

A head owns its loss, its metrics, what of it the teacher is compared on, and its picture.
The core calls nothing else, so a new kind of head is one new file in `heads/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ark.class_rows import ClassRows
from ark.types import (
    KINDS,
    BoxPrediction,
    ConfigError,
    FeatureInfo,
    Features,
    PointsPrediction,
    Prediction,
    Target,
    TaskSpec,
    ValuesPrediction,
)

if TYPE_CHECKING:  # a published model must load without matplotlib and torchmetrics
    from matplotlib.axes import Axes
    from torchmetrics import Metric

# features, output -> (B, C, ...), or of several levels a list of these; None: was not computed
Comparable = Callable[[Features, Any], Tensor | list[Tensor] | None]


class Head(nn.Module, ABC):
    """Base of all heads.

    Subclasses are built as `cls(task, features, **init_args)`; `init_args` come from the YAML.
    Shape letters: see `ark.types`.

    Class attributes:
        kinds: the task kinds that this head can learn.
        reads: "embedding" (the pooled, projected vector) or "maps" (the pyramid). The backbone
            computes only what the head of the phase reads.
        start_samples: training samples that `start` wants to see; 0: it is not called.
        guide: another task of the same dataset whose predicted boxes this head reads as
            `features.regions`, or None.
        resolved_args: what a head read from files that its `init_args` name, as plain data: with
            these in their place another machine builds it without those files.
        compared: names of `comparable` on which student and teacher are compared where the recipe
            does not say otherwise: the papers' choice.
        exclusive: whether the channels of the comparable "logits" exclude each other (a softmax
            over them), or each says yes or no (a sigmoid each).
        main_metric: the key of `metrics().compute()` that tables and "best" checkpoints use;
            higher is better.
    """

    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)
    reads: ClassVar[str] = "maps"
    start_samples: int = 0
    guide: str | None = None
    resolved_args: Mapping[str, Any] = MappingProxyType({})
    compared: tuple[str, ...]
    exclusive: bool = False
    main_metric: str

    def __init__(self, task: TaskSpec, features: FeatureInfo) -> None:
        super().__init__()
        if task.kind not in self.kinds:
            raise ConfigError(
                f"task {task.key!r} is of kind {task.kind!r}, but its head {type(self).__name__} "
                f"learns {sorted(self.kinds)}; choose another head.class_path for this task"
            )
        self.task = task
        self.info = features
        self._shared: dict[str, nn.Module] = {}  # a plain dict: the network owns them

    def share(self, name: str, recipe: Any, make: Callable[[], nn.Module]) -> nn.Module:
        """A part that all heads share who ask for `name`; see `ark.sharing`.

        Keep it out of the head's own modules: fetch it with `self.shared(name)`.
        """
        part = self._shared[name] = self.info.shared.ask(name, recipe, make, self.task.key)
        return part

    def shared(self, name: str) -> Any:
        """The part that `share` gave."""
        return self._shared[name]

    def shared_parts(self) -> list[nn.Module]:
        """Every part that this head shares with others."""
        return list(self._shared.values())

    @abstractmethod
    def forward(
        self, features: Features, target: Target | None = None, like: Any | None = None
    ) -> Any:
        """Everything that touches weights. Returns the raw output that the other methods read.

        Args:
            target: in training only, for heads whose forward needs it (denoising queries, sampled
                proposals); all others ignore it.
            like: for the teacher, the student's output on the same images: a head that selects
                (a detector its proposals) selects the same, so that both can be compared.
        """

    @abstractmethod
    def loss(self, output: Any, target: Target) -> dict[str, Tensor]:
        """Named scalar loss terms; the task's loss is their sum. Each is finite, also for a batch
        without a single label or box, and then gives a gradient of zero."""

    @abstractmethod
    def predict(self, output: Any) -> Prediction:
        """Probabilities, boxes or masks, in the frame of the network's input."""

    @abstractmethod
    def comparable(self) -> dict[str, Comparable]:
        """Everything on which student and teacher can be compared, by name, and how it is read
        from features and output. Channels are axis 1, as in torch's losses: (B, C, ...).

        Heads use the same names for the same things, and have those that exist for them:
        "pooled": the backbone's vector after its final norm; "embedding": the projector's;
        "backbone": the coarsest map; "pyramid": all maps; "tokens": a transformer's encoder, at the
        places that the student selects; "decoder": what the last layers read; "logits": of the
        classes, before sigmoid or softmax.
        """

    def consistency(
        self, features: Features, output: Any, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The named tensors on which student and teacher are compared; equal shapes on both sides.

        Only what is asked for is computed. A name with several tensors gives `pyramid/0`,
        `pyramid/1`, ..., which share its weight (see `ark.consistency`).

        Ark compares the embedding; Foundation X half backbone, half decoder (spec
        `foundation_x.md`, Teacher). The mean over the names is the consistency loss.

        Args:
            names: of `comparable`; None: those in `compared`.

        Raises:
            ValueError: the features lack what a name reads.
        """
        readers = self.comparable()
        found: dict[str, Tensor] = {}
        for name in self.compared if names is None else names:
            value = readers[name](features, output)
            if value is None:
                raise ValueError(
                    f"head of task {self.task.key}: the features have no {name!r}, which the "
                    f"backbone computes for heads that read 'embedding', not {self.reads!r}"
                )
            if isinstance(value, Tensor):
                found[name] = value
            else:
                found |= {f"{name}/{n}": level for n, level in enumerate(value)}
        return found

    @abstractmethod
    def metrics(self, task: TaskSpec | None = None) -> Metric:
        """A fresh metric: `update(prediction, target, patients)`, `compute() -> dict[str,
        Tensor]`, `reset()`. It holds its own state, so student and teacher each get one. One that
        also has `intervals` (see `heads.weighted`) gets confidence intervals in the tables.

        Args:
            task: what is scored; None: the head's own. Zero-shot transfer asks for the metric of
                one class of another dataset (see `ark.zeroshot`); a head that never takes part
                in it may ignore this.
        """

    def start(self, batches: Iterable[tuple[Features, Target]]) -> None:
        """Takes its first weights from data: class prototypes, the range of the labels.

        Called once before a new run, never on resume, in eval mode and without gradients, with
        about `start_samples` samples drawn from the training split, the same on every rank.
        """
        raise NotImplementedError(f"{type(self).__name__} has start_samples, but no start")

    def class_rows(self) -> dict[str, ClassRows] | None:
        """Of every tensor of the state dict that depends on the task's classes, which rows are
        whose: a run that starts from another one's weights takes the classes of the same name.

        None, the default: that is not defined here; where classes differ such a head starts anew.
        """
        return None

    def uncalibrate(self) -> None:
        """Back to before any `calibrate`: a run that goes on behind it does it again, and must find
        the same to the last bit. By default there is nothing to undo."""

    def calibrate(self, metric: Metric) -> None:
        """Chooses what is chosen on the validation split: thresholds, a temperature.

        Called once when training is over, on every rank, and before the test split is scored.

        Args:
            metric: of `metrics()`, over the whole validation split.
        """

    @abstractmethod
    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """Draws item `index` of a prediction, or of a target where `truth`, over its image.

        Args:
            image: (3, H, W) uint8, the view that the network saw.
        """

    @torch.no_grad()
    def predict_features(self, features: Features) -> Prediction:
        """Features -> prediction, as the hub and `ark predict` use it."""
        return self.predict(self(features))

    def graph(self, features: Features) -> dict[str, Tensor]:
        """What an exported graph gives (`ark.exporting`), by name; "" is the task's own output.

        Each is (B, ...) of a shape that the input's size alone decides, made without a decision
        about values, so that torch.export can trace it.

        Raises:
            ConfigError: there can be none; says why.
        """
        if self.guide is not None:
            raise ConfigError(
                f"head of task {self.task.key}: reads the boxes of {self.guide!r}, whose number "
                "varies by image, which a graph of fixed shapes cannot"
            )
        found = self.predict(self(features))
        if isinstance(found, BoxPrediction):
            raise ConfigError(
                f"head of task {self.task.key}: {type(self).__name__} gives boxes whose number "
                "varies by image, which a graph of fixed shapes cannot"
            )
        if isinstance(found, PointsPrediction):
            return {"points": found.points, "scores": found.scores}
        values = found.values if isinstance(found, ValuesPrediction) else found.probabilities
        return {"": values}

    def graph_facts(self) -> dict[str, Any]:
        """What beside its outputs an exported graph must say, as plain data."""
        return {}
