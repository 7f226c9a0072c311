"""Classification: one linear layer on the image's embedding, for yes/no labels or one of K classes.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ark.drawing import show_image
from ark.head import Head
from ark.types import (
    ClassPrediction,
    ConfigError,
    FeatureInfo,
    Features,
    MulticlassTarget,
    MultilabelTarget,
    Prediction,
    Target,
    TaskSpec,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

NAMES_IN_TITLE = 4


class ClassificationHead(Head):
    """Kind "multilabel": K independent labels, of which some may be unknown on an image.
    Kind "multiclass": exactly one of K classes.

    Args:
        dropout: the probability, in [0, 1), of dropping an entry of the embedding in training.

    Raises:
        ConfigError: `dropout` is out of range, or the task is of another kind.
    """

    kinds = frozenset({"multilabel", "multiclass"})
    reads = "embedding"
    main_metric = "auroc"

    def __init__(self, task: TaskSpec, features: FeatureInfo, dropout: float = 0.0) -> None:
        super().__init__(task, features)
        if not 0 <= dropout < 1:
            raise ConfigError(
                f"head of task {task.key}: expected dropout in [0, 1), but got {dropout!r}; "
                "0 switches it off"
            )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features.embedding, len(task.classes))

    def forward(self, features: Features, target: Target | None = None) -> Tensor:
        """Returns logits (B, K)."""
        return self.linear(self.dropout(_embedding(features)))

    def loss(self, output: Tensor, target: Target) -> dict[str, Tensor]:
        """{"bce": mean over the known labels} or {"cross_entropy": mean over the images}."""
        logits = output.float()
        if isinstance(target, MulticlassTarget):
            total = F.cross_entropy(logits, target.labels, reduction="sum")
            return {"cross_entropy": total / max(len(logits), 1)}
        assert isinstance(target, MultilabelTarget)
        known = target.known.to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(
            logits, target.labels.to(logits.dtype), weight=known, reduction="sum"
        )
        return {"bce": total / known.sum().clamp(min=1)}

    def predict(self, output: Tensor) -> ClassPrediction:
        """Sigmoid (multilabel) or softmax (multiclass) of the logits."""
        logits = output.float()
        multiclass = self.task.kind == "multiclass"
        return ClassPrediction(logits.softmax(dim=1) if multiclass else logits.sigmoid())

    def consistency(self, features: Features, output: Tensor) -> dict[str, Tensor]:
        """{"embedding": (B, D')}."""
        return {"embedding": _embedding(features)}

    def metrics(self) -> Metric:
        """AUROC, and accuracy for multiclass: see `heads.metrics.ClassMetric`."""
        from heads.metrics import ClassMetric

        return ClassMetric(self.task.classes, multiclass=self.task.kind == "multiclass")

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """The image under a title: the classes that are present, or the most probable ones."""
        title = self._truth(shown, index) if truth else self._top(shown, index)
        show_image(axes, image.permute(1, 2, 0).cpu().numpy(), title)

    def _truth(self, target: Prediction | Target, index: int) -> str:
        classes = self.task.classes
        if isinstance(target, MulticlassTarget):
            return classes[int(target.labels[index])]
        assert isinstance(target, MultilabelTarget)
        known = target.known[index]
        if not known.any():
            return "unknown"
        found = self._names((target.labels[index] >= 0.5) & known) or "none"
        missing = self._names(~known)
        return f"{found}\n(unknown: {missing})" if missing else found

    def _names(self, chosen: Tensor) -> str:
        names = [name for name, c in zip(self.task.classes, chosen.tolist(), strict=True) if c]
        more = f" +{len(names) - NAMES_IN_TITLE}" if len(names) > NAMES_IN_TITLE else ""
        return ", ".join(names[:NAMES_IN_TITLE]) + more

    def _top(self, prediction: Prediction | Target, index: int) -> str:
        assert isinstance(prediction, ClassPrediction)
        row = prediction.probabilities[index]
        best, order = row.topk(min(NAMES_IN_TITLE, len(row)))
        pairs = zip(best.tolist(), order.tolist(), strict=True)
        return "\n".join(f"{self.task.classes[k]} {p:.2f}" for p, k in pairs)


def _embedding(features: Features) -> Tensor:
    if features.embedding is None:
        raise ValueError(
            "features.embedding is None, but ClassificationHead reads it; "
            "compute it with the backbone and projector before calling this head"
        )
    return features.embedding
