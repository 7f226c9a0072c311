"""Regression: K numbers an image, such as an age or a cardiothoracic ratio.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ark.class_rows import ClassRows
from ark.distributed import ranks
from ark.drawing import show_image
from ark.head import Comparable, Head
from ark.types import (
    ConfigError,
    FeatureInfo,
    Features,
    Prediction,
    Target,
    TaskSpec,
    ValuesPrediction,
    ValuesTarget,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

LOSSES = {"huber": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss}


class RegressionHead(Head):
    """One linear layer on the image's embedding, in units of the training labels' spread.

    Args:
        loss: "huber" (quadratic within one standard deviation of the labels), "l1" or "mse".
        dropout: the probability, in [0, 1), of dropping an entry of the embedding in training.
        start_samples: training samples from which mean and spread of the labels are taken.

    Raises:
        ConfigError: a value outside these.
    """

    kinds = frozenset({"values"})
    reads = "embedding"
    compared = ("embedding",)
    main_metric = "r2"

    mean: Tensor  # (K,) of the labels, in the dataset's units
    spread: Tensor  # (K,) their standard deviation

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        loss: str = "huber",
        dropout: float = 0.0,
        start_samples: int = 256,
    ) -> None:
        super().__init__(task, features)
        where = f"head of task {task.key}"
        if loss not in LOSSES:
            raise ConfigError(f"{where}: expected loss to be one of {list(LOSSES)}, got {loss!r}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"{where}: expected dropout in [0, 1), but got {dropout!r}")
        if not isinstance(start_samples, int) or start_samples < 0:
            raise ConfigError(
                f"{where}: expected start_samples, a whole number, >= 0, but got {start_samples!r}"
            )
        self.loss_name, self.start_samples = loss, start_samples
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features.embedding, len(task.classes))
        self.register_buffer("mean", torch.zeros(len(task.classes)))
        self.register_buffer("spread", torch.ones(len(task.classes)))

    def start(self, batches: Iterable[tuple[Features, Target]]) -> None:
        """Mean and standard deviation of the known labels; of fewer than two the spread stays 1."""
        targets = [target for _, target in batches if isinstance(target, ValuesTarget)]
        values = torch.cat([target.values for target in targets])
        known = torch.cat([target.known for target in targets])
        for k in range(len(self.task.classes)):
            column = values[known[:, k], k]
            if len(column):
                self.mean[k] = column.mean()
            if len(column) > 1 and column.std() > 0:
                self.spread[k] = column.std()

    def class_rows(self) -> dict[str, ClassRows]:
        """All of it: a number's weights are in units of its own mean and spread."""
        return {name: ClassRows() for name in ("linear.weight", "linear.bias", "mean", "spread")}

    def forward(
        self, features: Features, target: Target | None = None, like: Any | None = None
    ) -> Tensor:
        """Returns (B, K) in standard deviations from the mean."""
        assert features.embedding is not None, "the network computes what `reads` names"
        return self.linear(self.dropout(features.embedding))

    def loss(self, output: Tensor, target: Target) -> dict[str, Tensor]:
        """{name of the loss: mean over the known values, in standard deviations}."""
        assert isinstance(target, ValuesTarget)
        truth = (target.values - self.mean) / self.spread
        each = LOSSES[self.loss_name](output.float(), truth, reduction="none")
        # where, not a product: nothing unknown may reach the sum, not even as 0 * infinity
        total = torch.where(target.known, each, 0.0).sum()
        count = ranks.mean(target.known.sum())
        return {self.loss_name: total / torch.where(count > 0, count, 1)}

    def predict(self, output: Tensor) -> ValuesPrediction:
        """(B, K) in the dataset's units."""
        return ValuesPrediction(output.float() * self.spread + self.mean)

    def comparable(self) -> dict[str, Comparable]:
        """Vectors of the image, and "values": (B, K) in standard deviations."""
        return {
            "pooled": lambda features, _: features.pooled,
            "embedding": lambda features, _: features.embedding,
            "values": lambda _, output: output,
        }

    def metrics(self, task: TaskSpec | None = None) -> Metric:
        """R2, mean absolute error, RMSE, correlation: see `.metric.ValuesMetric`."""
        from .metric import ValuesMetric

        return ValuesMetric((task or self.task).classes)

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """The image under its numbers."""
        assert isinstance(shown, ValuesPrediction | ValuesTarget)
        known = shown.known[index].tolist() if isinstance(shown, ValuesTarget) else None
        lines = [
            f"{name} {value:.4g}" if known is None or known[k] else f"{name} unknown"
            for k, (name, value) in enumerate(
                zip(self.task.classes, shown.values[index].tolist(), strict=True)
            )
        ]
        show_image(axes, image.permute(1, 2, 0).cpu().numpy(), "\n".join(lines))
