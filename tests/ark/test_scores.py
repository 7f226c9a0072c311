"""The one number of a validation: what cannot be measured is left out, what diverged is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ark.network import Network
from ark.scores import Scores, check_metrics
from ark.types import (
    ConfigError,
    MaskPrediction,
    MultilabelTarget,
    ValuesPrediction,
    ValuesTarget,
)
from toys import SIZE, make_batch, make_task

BACKBONE = {"name": "test_efficientnet", "image_size": SIZE}


def score(*pairs) -> dict[str, float]:
    """Scores of (batch, prediction) pairs, each of its own task."""
    tasks = [make_task(batch.task.split("/")[1]) for batch, _ in pairs]
    scores = Scores({"student": Network(BACKBONE, None, tasks)}, ("student",), torch.device("cpu"))
    for batch, prediction in pairs:
        scores.update("student", batch, prediction)
    return scores.compute("val")


def perfect_masks():
    batch = make_batch("segmentation", 4)
    return batch, MaskPrediction(batch.target.masks.float())


def test_a_task_without_labels_is_left_out() -> None:
    batch = make_batch("values", 4)
    nobody = torch.zeros(4, 3, dtype=torch.bool)
    batch.target = ValuesTarget(torch.zeros(4, 3), nobody)
    found = score(perfect_masks(), (batch, ValuesPrediction(torch.zeros(4, 3))))
    assert found["val/score"] == pytest.approx(1)
    assert "val/toy/values/non_finite" not in found


def test_a_task_that_diverged_counts_as_nothing_and_says_so() -> None:
    batch = make_batch("multilabel", 4)
    labels = torch.eye(4, 3)
    batch.target = MultilabelTarget(labels, torch.ones(4, 3, dtype=torch.bool))
    network = Network(BACKBONE, None, [make_task("multilabel")]).eval()
    prediction = network.predict("toy/multilabel", batch.images)
    prediction.probabilities[1:] = torch.nan
    found = score(perfect_masks(), (batch, prediction))
    assert found["val/toy/multilabel/non_finite"] == 3
    assert found["val/score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "metric"), [("multiclass", "accuracy"), ("detection", "map"), ("values", "mae")]
)
def test_a_task_says_by_which_metric_it_is_judged(kind: str, metric: str) -> None:
    task = replace(make_task(kind), metric=metric)
    network = Network(BACKBONE, None, [task])
    check_metrics(network)
    assert network.head(task.key).main_metric == metric
    again = Network.from_architecture(network.architecture)
    assert again.tasks == network.tasks
    assert again.head(task.key).main_metric == metric


def test_a_metric_that_a_head_lacks_is_refused() -> None:
    network = Network(BACKBONE, None, [replace(make_task("segmentation"), metric="auroc")])
    with pytest.raises(ConfigError, match=r"toy/segmentation: metric 'auroc'; .*'dice'"):
        check_metrics(network)


@pytest.mark.parametrize(
    ("kind", "scored", "message"),
    [("multilabel", ("lungs",), "'lungs' is no class"), ("detection", ("lung",), "not of detec")],
)
def test_classes_that_cannot_be_scored_are_refused(kind, scored, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(make_task(kind), scored=scored)
