"""ClassificationHead against plain formulas, with missing labels."""

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from ark.types import (
    ClassPrediction,
    ConfigError,
    FeatureInfo,
    Features,
    MulticlassTarget,
    MultilabelTarget,
    TaskSpec,
)
from heads.classification import ClassificationHead

matplotlib.use("Agg")
CLASSES = ("Atelectasis", "Edema", "Mass", "Nodule", "Hernia", "Fibrosis")
INFO = FeatureInfo((16, 320), (16, 32), pooled=320, embedding=12, image_size=64)


def make_head(kind, **init_args):
    torch.manual_seed(0)
    return ClassificationHead(TaskSpec("nih14", "findings", kind, CLASSES), INFO, **init_args)


def make_features(batch, embedding=12):
    return Features([], None, torch.randn(batch, embedding, requires_grad=True), (64, 64))


@pytest.mark.parametrize("known_rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 5])
def test_multilabel_loss_is_the_mean_over_known_labels(batch, known_rate):
    head, features = make_head("multilabel"), make_features(batch)
    labels = torch.rand(batch, len(CLASSES))  # uncertain labels may lie between 0 and 1
    known = torch.rand(batch, len(CLASSES)) < known_rate
    logits = head(features)
    loss = head.loss(logits, MultilabelTarget(labels, known))["bce"]

    p = logits.sigmoid()
    terms = [
        -(labels[n, k] * torch.log(p[n, k]) + (1 - labels[n, k]) * torch.log(1 - p[n, k]))
        for n, k in known.nonzero().tolist()
    ]
    expected = sum(terms) / len(terms) if terms else torch.tensor(0.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    if not terms:
        assert not features.embedding.grad.any()


def test_an_unknown_label_gives_no_gradient():
    head, features = make_head("multilabel"), make_features(4)
    known = torch.ones(4, len(CLASSES), dtype=torch.bool)
    known[:, 2] = False
    target = MultilabelTarget(torch.ones(4, len(CLASSES)), known)
    head.loss(head(features), target)["bce"].backward()
    assert not head.linear.weight.grad[2].any()
    assert head.linear.weight.grad[[0, 1, 3, 4, 5]].abs().sum(dim=1).all()


@pytest.mark.parametrize("batch", [1, 5])
def test_multiclass_loss_is_the_negative_log_probability_of_the_truth(batch):
    head = make_head("multiclass")
    logits = head(make_features(batch))
    labels = torch.randint(0, len(CLASSES), (batch,))
    powers = logits.exp()
    expected = -torch.log(powers[torch.arange(batch), labels] / powers.sum(dim=1)).mean()
    loss = head.loss(logits, MulticlassTarget(labels))["cross_entropy"]
    torch.testing.assert_close(loss, expected)


def test_extreme_logits_in_half_precision_keep_the_loss_finite():
    logits = torch.tensor([[6e4, -6e4] * 3], dtype=torch.float16)
    target = MultilabelTarget(torch.tensor([[0.0, 1.0] * 3]), torch.ones(1, 6, dtype=torch.bool))
    assert make_head("multilabel").loss(logits, target)["bce"] == pytest.approx(59968, rel=1e-3)
    assert make_head("multilabel").predict(logits).probabilities.dtype == torch.float32


def test_multiclass_probabilities_sum_to_one_and_multilabel_ones_are_independent():
    logits = torch.randn(3, len(CLASSES))
    rows = make_head("multiclass").predict(logits).probabilities
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(3))
    independent = make_head("multilabel").predict(logits).probabilities
    torch.testing.assert_close(independent, 1 / (1 + torch.exp(-logits)))


def test_dropout_acts_in_training_only():
    head, features = make_head("multilabel", dropout=0.5), make_features(4)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_out_of_range_is_named(dropout):
    with pytest.raises(ConfigError, match=r"nih14/findings.*dropout in \[0, 1\).*" + str(dropout)):
        make_head("multilabel", dropout=dropout)


def test_features_without_an_embedding_are_named():
    with pytest.raises(ValueError, match=r"features\.embedding is None"):
        make_head("multilabel")(Features([], None, None, (64, 64)))


def title_of(kind, shown, truth):
    axes = Figure().subplots()
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    make_head(kind).draw(axes, image, shown, index=0, truth=truth)
    return axes.get_title(loc="left")


def test_titles_tell_truth_prediction_and_ignorance():
    everything = torch.ones(1, 6, dtype=torch.bool)
    some = torch.tensor([[0.0, 1, 0, 1, 0, 0]])
    assert title_of("multilabel", MultilabelTarget(some, everything), True) == "Edema, Nodule"
    assert title_of("multilabel", MultilabelTarget(0 * some, everything), True) == "none"
    assert title_of("multilabel", MultilabelTarget(some, ~everything), True) == "unknown"
    partly = everything.clone()
    partly[0, :2] = False
    unknown = title_of("multilabel", MultilabelTarget(some, partly), True).splitlines()[1]
    assert unknown.startswith("(unknown: ")
    assert unknown.count(",") == 1
    all_six = title_of("multilabel", MultilabelTarget(torch.ones(1, 6), everything), True)
    assert all_six.endswith("Nodule +2")
    assert title_of("multiclass", MulticlassTarget(torch.tensor([2])), True) == "Mass"
    probabilities = ClassPrediction(torch.tensor([[0.1, 0.2, 0.9, 0.05, 0.3, 0.0]]))
    assert title_of("multilabel", probabilities, False).splitlines() == [
        "Mass 0.90",
        "Hernia 0.30",
        "Edema 0.20",
        "Atelectasis 0.10",
    ]
