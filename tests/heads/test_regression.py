"""Oracles: scikit-learn and numpy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score

from ark.types import ConfigError, FeatureInfo, Features, TaskSpec, ValuesPrediction, ValuesTarget
from heads.regression import RegressionHead
from heads.regression.metric import ValuesMetric

NAMES = ("ctr", "age")
INFO = FeatureInfo((8,), (32,), pooled=8, embedding=8, image_size=64)


def make_head(**options):
    torch.manual_seed(0)
    return RegressionHead(TaskSpec("toy", "numbers", "values", NAMES), INFO, **options)


def make_features(count):
    return Features([], None, torch.randn(count, 8), (64, 64))


def make_target(count=20):
    values = torch.stack([0.5 + 0.05 * torch.randn(count), 60 + 15 * torch.randn(count)], dim=1)
    known = torch.rand(count, 2) < 0.8
    return ValuesTarget(torch.where(known, values, 0.0), known)


def test_it_learns_numbers_of_unlike_size_alike():
    torch.manual_seed(1)
    head, features = make_head(), make_features(64)
    truth = features.embedding[:, :2] * torch.tensor([0.05, 15.0]) + torch.tensor([0.5, 60.0])
    target = ValuesTarget(truth, torch.ones(64, 2, dtype=torch.bool))
    head.start([(features, target)])
    torch.testing.assert_close(head.mean, truth.mean(dim=0))
    torch.testing.assert_close(head.spread, truth.std(dim=0))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(head(features), target)["huber"].backward()
        optimizer.step()
    metric = head.metrics()
    metric.update(head.predict_features(features), target)
    result = metric.compute()
    assert result["r2/ctr"] > 0.99
    assert result["r2/age"] > 0.99
    assert result["mae/age"] < 1


@pytest.mark.parametrize("loss", ["huber", "l1", "mse"])
def test_only_known_numbers_count(loss):
    torch.manual_seed(2)
    head, target = make_head(loss=loss), make_target()
    output = torch.randn(20, 2, requires_grad=True)
    (term,) = head.loss(output, target).values()
    error = (output - target.values)[target.known].abs()
    expected = {
        "l1": error,
        "mse": error**2,
        "huber": torch.where(error < 1, error**2 / 2, error - 0.5),
    }[loss].mean()
    torch.testing.assert_close(term, expected)
    term.backward()
    assert not output.grad[~target.known].any()
    target.known[:] = False
    assert head.loss(output, target)[loss] == 0


def test_a_start_without_labels_changes_nothing():
    head, target = make_head(), make_target()
    target.known[:] = False
    head.start([(make_features(20), target)])
    assert head.mean.tolist() == [0, 0]
    assert head.spread.tolist() == [1, 1]


def test_metrics_equal_scikit_learn_also_weighted():
    torch.manual_seed(3)
    target, predicted = make_target(30), make_target(30).values
    metric = ValuesMetric(NAMES)
    for some in torch.arange(30).split(7):
        metric.update(
            ValuesPrediction(predicted[some]), ValuesTarget(target.values[some], target.known[some])
        )
    evidence = metric.evidence()
    for weights in (np.ones(30), np.random.default_rng(0).integers(0, 3, 30).astype(float)):
        found = metric.score(evidence, weights)
        for k, name in enumerate(NAMES):
            known = target.known[:, k].numpy()
            args = target.values[known, k].double(), predicted[known, k].double(), weights[known]
            truth, guess, share = (np.asarray(a) for a in args)
            assert found[f"r2/{name}"] == pytest.approx(r2_score(truth, guess, sample_weight=share))
            mae = mean_absolute_error(truth, guess, sample_weight=share)
            assert found[f"mae/{name}"] == pytest.approx(mae)
            square = np.average((truth - guess) ** 2, weights=share)
            assert found[f"rmse/{name}"] == pytest.approx(np.sqrt(square))
            repeated = share.astype(int)
            both = np.corrcoef(np.repeat(truth, repeated), np.repeat(guess, repeated))
            assert found[f"pearson/{name}"] == pytest.approx(both[0, 1])
        assert found["r2"] == pytest.approx((found["r2/ctr"] + found["r2/age"]) / 2)


def test_nothing_to_measure_is_nan():
    assert all(value.isnan() for value in ValuesMetric(NAMES).compute().values())
    target = ValuesTarget(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool))
    metric = ValuesMetric(NAMES)
    metric.update(ValuesPrediction(torch.rand(3, 2)), target)
    assert metric.compute()["r2"].isnan()  # all truths are equal: no variance to explain
    assert metric.compute()["mae"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l3"}, r"loss to be one of \['huber', 'l1', 'mse'\], got 'l3'"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), but got 1.0"),
        ({"start_samples": -1}, "start_samples, a whole number, >= 0, but got -1"),
    ],
)
def test_wrong_arguments_name_the_task_and_what_is_possible(options, message):
    with pytest.raises(ConfigError, match=f"toy/numbers.*{message}"):
        make_head(**options)
