"""Oracles: scikit-learn with sample weights; a few lines of numpy for the calibration error."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from ark.types import ClassPrediction, MulticlassTarget, MultilabelTarget
from heads.classification.metric import ClassMetric

pytestmark = pytest.mark.filterwarnings("ignore:.*before the ``update`` method")
CLASSES = ("a", "b", "c", "d")
THRESHOLDS = (0.5, 0.25, 0.625, 0.1)
KINDS = ("multilabel", "multiclass", "ordinal")


def random_labels(seed, images=60, known_rate=0.7, ties=8):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, len(CLASSES), generator=rng)
    scores = scores.mul(ties).round().div(ties) if ties else scores
    labels = (torch.rand(scores.shape, generator=rng) < 0.4).float()
    known = torch.rand(scores.shape, generator=rng) < known_rate
    return scores, labels, known


def random_rows(seed, images=60, ties=4):
    """Rows that sum to 1, with equal numbers among them; class d never occurs."""
    rng = torch.Generator().manual_seed(seed)
    parts = torch.rand(images, len(CLASSES), generator=rng)
    parts = parts.mul(ties).round() + 0.25 if ties else parts
    return parts / parts.sum(1, keepdim=True), torch.randint(0, 3, (images,), generator=rng)


def weights_of(seed, images):
    """As the bootstrap draws them: whole numbers, many of them zero; or any."""
    rng = np.random.default_rng(seed)
    return rng.poisson(1, images).astype(float) if seed % 2 else rng.random(images)


def scored(metric, weights, brief=False):
    return metric.score(metric.evidence(), weights, brief)


@pytest.mark.parametrize("ties", [0, 2, 8])
@pytest.mark.parametrize("seed", range(6))
def test_areas_and_f1_of_yes_no_labels_agree_with_scikit_learn(seed, ties):
    scores, labels, known = random_labels(seed, ties=ties)
    labels[:, 3] = seed % 2  # without negatives, or without positives
    metric = ClassMetric(CLASSES, thresholds=THRESHOLDS)
    for part in torch.arange(len(scores)).split(7):
        metric.update(ClassPrediction(scores[part]), MultilabelTarget(labels[part], known[part]))
    weights = weights_of(seed, len(scores))
    found = scored(metric, weights)
    names = {"auroc": sk.roc_auc_score, "auprc": sk.average_precision_score}
    for name, reference in names.items():
        expected = [
            reference(labels[on, k], scores[on, k], sample_weight=weights[on])
            for k, on in enumerate(known.numpy().T[:3])
        ]
        mine = [found[f"{name}/{c}"] for c in CLASSES]
        np.testing.assert_allclose(mine[:3], expected, atol=1e-12)
        assert np.isnan(mine[3])
        assert found[name] == pytest.approx(np.mean(expected))
    f1 = [
        sk.f1_score(labels[on, k], scores[on, k] >= THRESHOLDS[k], sample_weight=weights[on])
        for k, on in enumerate(known.numpy().T)
    ]
    if not seed % 2:
        f1[3] = np.nan
    np.testing.assert_allclose([found[f"f1/{c}"] for c in CLASSES], f1, atol=1e-12)
    assert found["f1"] == pytest.approx(np.nanmean(f1))


def test_means_go_over_the_classes_that_are_scored():
    scores, labels, known = random_labels(0)
    metrics = ClassMetric(CLASSES, scored=CLASSES[1:3]), ClassMetric(CLASSES)
    for metric in metrics:
        metric.update(ClassPrediction(scores), MultilabelTarget(labels, known))
    part, whole = (metric.compute() for metric in metrics)
    for name in ("auroc", "auprc", "f1"):
        by_class = [float(whole[f"{name}/{c}"]) for c in CLASSES[1:3]]
        assert float(part[name]) == pytest.approx(np.mean(by_class))
        assert float(part[name]) != pytest.approx(float(whole[name]))
    assert part["ece"] == whole["ece"]


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
@pytest.mark.parametrize("ties", [0, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_one_of_several_classes_agrees_with_scikit_learn(seed, ties, kind):
    scores, labels = random_rows(seed, ties=ties)
    metric = ClassMetric(CLASSES, kind)
    metric.update(ClassPrediction(scores), MulticlassTarget(labels))
    weights = weights_of(seed, len(scores))
    found = scored(metric, weights)
    for k, name in enumerate(CLASSES[:3]):
        truth, given = (labels == k).numpy(), {"sample_weight": weights}
        auroc = sk.roc_auc_score(truth, scores[:, k], **given)
        assert found[f"auroc/{name}"] == pytest.approx(auroc)
        auprc = sk.average_precision_score(truth, scores[:, k], **given)
        assert found[f"auprc/{name}"] == pytest.approx(auprc)
    choice = scores.argmax(1).numpy()
    if kind == "ordinal":  # the least class that half of the probability does not exceed
        choice = np.array(
            [next(k for k in range(4) if row[: k + 1].sum() >= 0.5) for row in scores]
        )
    f1 = sk.f1_score(labels, choice, labels=[0, 1, 2], average=None, sample_weight=weights)
    np.testing.assert_allclose([found[f"f1/{c}"] for c in CLASSES[:3]], f1, atol=1e-12)
    assert np.isnan(found["f1/d"])
    accuracy = sk.accuracy_score(labels, choice, sample_weight=weights)
    assert found["accuracy"] == pytest.approx(accuracy)
    if kind == "ordinal":
        kappa = sk.cohen_kappa_score(labels, choice, weights="quadratic", sample_weight=weights)
        assert found["qwk"] == pytest.approx(kappa)
        error = sk.mean_absolute_error(labels, choice, sample_weight=weights)
        assert found["mae"] == pytest.approx(error)


def calibration_error(confidence, right, weights):
    """Guo et al., equation 3: |right - confidence| of each bin, by the bin's share."""
    upper = np.arange(1, 16) / 15
    bins = np.searchsorted(upper, confidence)
    total = 0.0
    for b in np.unique(bins):
        w = weights[bins == b]
        if w.sum():
            gap = np.average(right[bins == b] - confidence[bins == b], weights=w)
            total += w.sum() / weights.sum() * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_of_yes_no_labels_is_over_all_known_pairs(seed):
    scores, labels, known = random_labels(seed, ties=0)
    metric = ClassMetric(CLASSES)
    metric.update(ClassPrediction(scores), MultilabelTarget(labels, known))
    on = known.numpy()
    weights = weights_of(seed, len(scores))
    spread = np.broadcast_to(weights[:, None], on.shape)[on]
    expected = calibration_error(scores.double().numpy()[on], labels.numpy()[on], spread)
    assert scored(metric, weights)["ece"] == pytest.approx(expected)
    theirs = binary_calibration_error(scores[known], labels[known].long(), n_bins=15)
    assert float(metric.compute()["ece"]) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_of_several_classes_is_of_the_most_probable_one(seed):
    scores, labels = random_rows(seed, ties=0)
    metric = ClassMetric(CLASSES, "multiclass")
    metric.update(ClassPrediction(scores), MulticlassTarget(labels))
    weights = weights_of(seed, len(scores))
    top, best = (x.numpy() for x in scores.double().max(1))
    expected = calibration_error(top, (best == labels.numpy()).astype(float), weights)
    assert scored(metric, weights)["ece"] == pytest.approx(expected)
    theirs = multiclass_calibration_error(scores, labels, num_classes=4, n_bins=15)
    assert float(metric.compute()["ece"]) == pytest.approx(float(theirs), abs=1e-6)


def test_errors_of_neighbouring_bins_do_not_cancel():
    """The two uppermost bins hold 0.87 to 0.93 and 0.93 to 1, each with its upper edge."""
    scores = torch.tensor([[0.95], [0.90], [1.0]])
    labels = torch.tensor([[0.0], [1.0], [1.0]])
    metric = ClassMetric(("a",))
    metric.update(ClassPrediction(scores), MultilabelTarget(labels, torch.ones(3, 1).bool()))
    assert float(metric.compute()["ece"]) == pytest.approx((0.95 + 0.1) / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_how_often_an_image_counts(kind):
    """Whole weights do what copies of the images do, and weight 0 what leaving them out does."""
    counts = np.random.default_rng(0).integers(0, 4, 40)
    copies = torch.from_numpy(np.repeat(np.arange(40), counts))
    weighed, copied = ClassMetric(CLASSES, kind), ClassMetric(CLASSES, kind)
    scores, labels, known = random_labels(1, 40)
    rows, truth = random_rows(1, 40)

    def update(metric, part):
        if kind == "multilabel":
            target = MultilabelTarget(labels[part], known[part])
            metric.update(ClassPrediction(scores[part]), target)
        else:
            metric.update(ClassPrediction(rows[part]), MulticlassTarget(truth[part]))

    update(weighed, torch.arange(40))
    update(copied, copies)
    expected = {name: float(value) for name, value in copied.compute().items()}
    assert scored(weighed, counts.astype(float)) == pytest.approx(expected, nan_ok=True)


def test_a_soft_label_is_positive_from_one_half():
    metric = ClassMetric(("a",))
    labels = torch.tensor([[0.7], [0.2], [0.5], [0.0]])
    scores = torch.tensor([[0.9], [0.1], [0.8], [0.2]])
    metric.update(ClassPrediction(scores), MultilabelTarget(labels, torch.ones(4, 1).bool()))
    found = metric.compute()
    assert found["auroc"] == found["auprc"] == found["f1"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_metric_without_a_single_image_is_nan_with_the_same_keys(kind):
    empty, full = ClassMetric(CLASSES, kind), ClassMetric(CLASSES, kind)
    target = MulticlassTarget(torch.tensor([0, 1]))
    if kind == "multilabel":
        target = MultilabelTarget(torch.eye(2, 4), torch.ones(2, 4, dtype=torch.bool))
    full.update(ClassPrediction(torch.full((2, 4), 0.25)), target)
    assert set(empty.compute()) == set(full.compute())
    assert all(value.isnan() for value in empty.compute().values())
    assert empty.intervals(draws=3) == {}
    assert set(scored(full, np.ones(2), brief=True)) == {
        k for k in full.compute() if "/" not in k and k != "ece"
    }


def test_labels_that_nobody_knows_are_not_measured():
    scores, labels, known = random_labels(0)
    metric = ClassMetric(CLASSES)
    metric.update(ClassPrediction(scores), MultilabelTarget(labels, ~known & known))
    assert all(value.isnan() for value in metric.compute().values())
    assert all(np.isnan(bounds).all() for bounds in metric.intervals(draws=3).values())


def test_one_class_alone_has_no_kappa_and_no_area():
    metric = ClassMetric(CLASSES, "ordinal")
    metric.update(ClassPrediction(torch.eye(4)[[1, 1]]), MulticlassTarget(torch.tensor([1, 1])))
    found = metric.compute()
    assert found["accuracy"] == found["f1"] == 1
    assert found["mae"] == found["ece"] == 0
    assert found["qwk"].isnan()
    assert found["auroc"].isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_diverged_is_not_measured_and_does_not_stop_the_run(kind):
    metric = ClassMetric(CLASSES, kind)
    scores = torch.full((3, 4), torch.nan)
    target = MulticlassTarget(torch.arange(3))
    if kind == "multilabel":
        target = MultilabelTarget(torch.eye(3, 4), torch.ones(3, 4, dtype=torch.bool))
    metric.update(ClassPrediction(scores), target)
    found = metric.compute()
    assert found["auroc"].isnan()
    assert found["ece"].isnan()


def test_intervals_hold_the_value_and_shrink_with_more_images():
    widths = []
    for images in (60, 960):
        scores, labels, known = random_labels(3, images, ties=0)
        metric = ClassMetric(CLASSES)
        scores = (scores + 0.5 * labels) / 1.5
        metric.update(ClassPrediction(scores), MultilabelTarget(labels, known))
        value, bounds = metric.compute(), metric.intervals(draws=200)
        for name in ("auroc", "auprc", "f1"):
            assert bounds[name][0] < float(value[name]) < bounds[name][1]
        widths.append(np.subtract(*bounds["auroc"][::-1]))
    assert 2 < widths[0] / widths[1] < 8  # by the square root of 16
