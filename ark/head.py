"""Head: everything that is particular to one task of one dataset.

A head owns its loss, its metrics, what of it the teacher is compared on, and its picture.
The core calls nothing else, so a new kind of head is one new file in `heads/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ark.types import KINDS, ConfigError, FeatureInfo, Features, Prediction, Target, TaskSpec

if TYPE_CHECKING:  # a published model must load without matplotlib and torchmetrics
    from matplotlib.axes import Axes
    from torchmetrics import Metric


class Head(nn.Module, ABC):
    """Base of all heads.

    Subclasses are built as `cls(task, features, **init_args)`; `init_args` come from the YAML.
    Shape letters: see `ark.types`.

    Class attributes:
        kinds: the task kinds that this head can learn.
        reads: "embedding" (the pooled, projected vector) or "maps" (the pyramid). The backbone
            computes only what the head of the phase reads.
        main_metric: the key of `metrics().compute()` that tables and "best" checkpoints use;
            higher is better.
    """

    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)
    reads: ClassVar[str] = "maps"
    main_metric: ClassVar[str]

    def __init__(self, task: TaskSpec, features: FeatureInfo) -> None:
        super().__init__()
        if task.kind not in self.kinds:
            raise ConfigError(
                f"task {task.key!r} is of kind {task.kind!r}, but its head {type(self).__name__} "
                f"learns {sorted(self.kinds)}; choose another head.class_path for this task"
            )
        self.task = task
        self.info = features

    @abstractmethod
    def forward(self, features: Features, target: Target | None = None) -> Any:
        """Everything that touches weights. Returns the raw output that the other methods read.

        `target` is given in training only, for heads whose forward needs it (denoising queries,
        sampled proposals); all others ignore it.
        """

    @abstractmethod
    def loss(self, output: Any, target: Target) -> dict[str, Tensor]:
        """Named scalar loss terms; the task's loss is their sum. Each is finite, also for a batch
        without a single label or box, and then gives a gradient of zero."""

    @abstractmethod
    def predict(self, output: Any) -> Prediction:
        """Probabilities, boxes or masks, in the frame of the network's input."""

    @abstractmethod
    def consistency(self, features: Features, output: Any) -> dict[str, Tensor]:
        """Named tensors on which student and teacher are compared; equal shapes on both sides.

        Ark compares the embedding; Foundation X half backbone, half decoder (spec
        `foundation_x.md`, Teacher). The mean over the names is the consistency loss.
        """

    @abstractmethod
    def metrics(self) -> Metric:
        """A fresh metric: `update(prediction, target)`, `compute() -> dict[str, Tensor]`,
        `reset()`. It holds its own state, so student and teacher each get one."""

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
