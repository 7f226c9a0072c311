"""Classification of the image's embedding: yes/no labels, one of K classes, or one of K grades.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ark.class_rows import ClassRows
from ark.head import Comparable, Head
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

from .calibration import UNDECIDED, best_temperature, best_thresholds
from .classifiers import CLASSIFIERS, Cutpoints, hidden_layer, last_layer
from .links import LINKS
from .losses import ClassLoss, class_weights
from .prototypes import ClassMeans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

    from .metric import ClassMetric


class ClassificationHead(Head):
    """Kind "multilabel": K independent labels, of which some may be unknown on an image; a binary
    task has one. "multiclass": exactly one of K classes. "ordinal": so too, and they are grades.

    Args:
        dropout: the probability, in [0, 1), of dropping an input of the last layer in training.
        classifier: "linear"; "mlp" (a hidden layer before it); "cosine" (no length counts).
        hidden: width of the hidden layer of "mlp"; None: that of the embedding.
        loss: multilabel: "bce", "focal" or "asymmetric"; multiclass: "cross_entropy", "focal" or
            "bce" (each class against the rest; probabilities are the softmax all the same);
            ordinal: "coral" or "corn", which also says what the logits mean. None: the first.
        loss_args: of the loss: focal {gamma: 2, alpha: 0.25}, of multiclass {gamma: 2}; asymmetric
            {gamma_neg: 4, gamma_pos: 0, clip: 0.05}.
        class_weights: of each class in the loss, as a list or by name; classes not named weigh 1.
        label_smoothing: the share of each label, in [0, 1), that is spread evenly.
        prototypes: training samples from whose class means the last layer starts; 0: at random.

    Raises:
        ConfigError: a value outside these, or the task is of another kind.
    """

    kinds = frozenset({"multilabel", "multiclass", "ordinal"})
    reads = "embedding"
    compared = ("embedding",)
    main_metric = "auroc"

    temperature: Tensor  # scalar; what logits are divided by to give probabilities
    thresholds: Tensor  # (K,) probabilities from which a label of a multilabel task is chosen

    def __init__(
        self,
        task: TaskSpec,
        features: FeatureInfo,
        dropout: float = 0.0,
        classifier: str = "linear",
        hidden: int | None = None,
        loss: str | None = None,
        loss_args: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
        prototypes: int = 0,
    ) -> None:
        super().__init__(task, features)
        _check(task, dropout, classifier, hidden, prototypes)
        classes = len(task.classes)
        self.criterion = _criterion(task, loss, loss_args, class_weights, label_smoothing)
        fixed = {"multilabel": "sigmoid", "multiclass": "softmax"}
        self.link = fixed.get(task.kind, self.criterion.name)
        self.exclusive = self.link == "softmax"
        self.start_samples = prototypes
        if task.kind == "ordinal":
            self.main_metric = "qwk"
        width = (hidden or features.embedding) if classifier == "mlp" else features.embedding
        self.hidden = hidden_layer(classifier, features.embedding, width)
        self.dropout = nn.Dropout(dropout)
        self.linear = last_layer(classifier, self.link, width, classes)
        self.cutpoints = Cutpoints(classes) if self.link == "coral" else nn.Identity()
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("thresholds", torch.full((classes,), UNDECIDED))

    def forward(
        self, features: Features, target: Target | None = None, like: Any | None = None
    ) -> Tensor:
        """Returns logits, before any temperature: (B, K), of an ordinal task (B, K - 1)."""
        hidden = self.hidden(_embedding(features))
        return self.cutpoints(self.linear(self.dropout(hidden)))

    def loss(self, output: Tensor, target: Target) -> dict[str, Tensor]:
        """{name of the loss: weighted mean over the known labels or over the images}."""
        return {self.criterion.name: self.criterion(output, target)}

    def predict(self, output: Tensor) -> ClassPrediction:
        """Probabilities (B, K) at the head's temperature."""
        return ClassPrediction(LINKS[self.link].probabilities(output.float() / self.temperature))

    def graph_facts(self) -> dict[str, Any]:
        """The thresholds of a multilabel task, by class."""
        return {"thresholds": self.thresholds.tolist()} if self.link == "sigmoid" else {}

    def comparable(self) -> dict[str, Comparable]:
        """Vectors of the image and logits; an ordinal task's K - 1 are one question each."""
        return {
            "pooled": lambda features, _: features.pooled,
            "embedding": lambda features, _: features.embedding,
            "logits": lambda _, output: output,
        }

    def metrics(self, task: TaskSpec | None = None) -> Metric:
        """See `.metric.ClassMetric`; of its own task it takes the thresholds of now."""
        from .metric import ClassMetric

        if task is not None:
            return ClassMetric(task.classes, task.kind, scored=task.scored)
        thresholds = self.thresholds.tolist()
        return ClassMetric(self.task.classes, self.task.kind, thresholds, self.task.scored)

    def prototypes(self) -> ClassMeans:
        """What collects class means of what the last layer sees and then sets its weights."""
        return ClassMeans(self.linear, len(self.task.classes))

    def init_prototypes(self, embeddings: Tensor, target: Target) -> None:
        """Sets the last layer from (B, D') embeddings at once; see `.prototypes`."""
        self._start([(embeddings, target)])

    def start(self, batches: Iterable[tuple[Features, Target]]) -> None:
        self._start((_embedding(features), target) for features, target in batches)

    @torch.no_grad()
    def _start(self, batches: Iterable[tuple[Tensor, Target]]) -> None:
        means = self.prototypes()
        for embeddings, target in batches:
            means.add(self.hidden(embeddings), target)
        means.apply()

    def class_rows(self) -> dict[str, ClassRows] | None:
        """The last layer's and the thresholds. Grades are cut out of one line together."""
        if self.task.kind == "ordinal":
            return None
        layer = [
            f"linear.{name}"
            for name in ("weight", "bias")
            if getattr(self.linear, name) is not None
        ]
        return {name: ClassRows() for name in (*layer, "thresholds")}

    @torch.no_grad()
    def uncalibrate(self) -> None:
        self.temperature.fill_(1.0)
        self.thresholds.fill_(UNDECIDED)

    @torch.no_grad()
    def calibrate(self, metric: ClassMetric) -> None:  # type: ignore[override]
        """The temperature of the least negative log-likelihood, and for a multilabel task the
        thresholds of the greatest F1 at that temperature. Nothing known: all stays."""
        tables = (torch.from_numpy(table).double() for table in metric.everything())
        probabilities, labels = tables
        known = labels >= 0
        if not known.any() or not probabilities[known].isfinite().all():
            return
        link, current = LINKS[self.link], float(self.temperature)
        logits = link.logits(probabilities) * current
        multilabel = self.task.kind == "multilabel"
        best = best_temperature(logits, labels, link, multilabel, current)
        self.temperature.fill_(best)
        if multilabel:
            calibrated = link.probabilities(logits / best)
            thresholds = best_thresholds(calibrated.numpy(), labels.numpy())
            self.thresholds.copy_(torch.from_numpy(thresholds))

    def draw(
        self, axes: Axes, image: Tensor, shown: Prediction | Target, index: int, truth: bool
    ) -> None:
        """The image under the names of what is present or chosen, over a chart of the classes that
        matter most: see `heads.classification.drawing`."""
        from . import drawing

        classes = self.task.classes
        if isinstance(shown, ClassPrediction):
            rows = drawing.predicted_rows(shown, index, self.task.kind, self.thresholds)
        else:
            assert isinstance(shown, MultilabelTarget | MulticlassTarget)
            rows = drawing.truth_rows(shown, index)
        drawing.draw(axes, image, rows, classes)


def _check(
    task: TaskSpec, dropout: float, classifier: str, hidden: int | None, prototypes: int
) -> None:
    where = f"head of task {task.key}"
    if task.kind == "ordinal" and len(task.classes) < 2:
        raise ConfigError(
            f"{where}: an ordinal task needs at least 2 classes, but has {list(task.classes)}"
        )
    if not 0 <= dropout < 1:
        raise ConfigError(
            f"{where}: expected dropout in [0, 1), but got {dropout!r}; 0 switches it off"
        )
    if classifier not in CLASSIFIERS:
        raise ConfigError(
            f"{where}: expected classifier to be one of {list(CLASSIFIERS)}, but got {classifier!r}"
        )
    if hidden is not None and (classifier != "mlp" or hidden < 1):
        raise ConfigError(
            f"{where}: hidden is the width, at least 1, of classifier 'mlp', but got hidden "
            f"{hidden!r} with classifier {classifier!r}"
        )
    if isinstance(prototypes, bool) or not isinstance(prototypes, int) or prototypes < 0:
        raise ConfigError(
            f"{where}: expected prototypes to be a number of training samples, 0 for none, but "
            f"got {prototypes!r}"
        )
    if prototypes and task.kind == "ordinal":
        raise ConfigError(
            f"{where}: an ordinal task has one direction for all its classes and no prototypes; "
            "set prototypes to 0"
        )


def _criterion(
    task: TaskSpec,
    loss: str | None,
    loss_args: Mapping[str, float] | None,
    weights: Sequence[float] | Mapping[str, float] | None,
    smoothing: float,
) -> ClassLoss:
    where = f"head of task {task.key}"
    by_class = class_weights(weights, task.classes, where)
    return ClassLoss(task.kind, loss, loss_args, by_class, smoothing, where)


def _embedding(features: Features) -> Tensor:
    if features.embedding is None:
        raise ValueError(
            "features.embedding is None, but ClassificationHead reads it; "
            "compute it with the backbone and projector before calling this head"
        )
    return features.embedding
