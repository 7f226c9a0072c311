"""ClassificationHead against plain formulas, with missing labels."""

import pytest
import torch

from ark.types import (
    ConfigError,
    FeatureInfo,
    Features,
    MulticlassTarget,
    MultilabelTarget,
    TaskSpec,
)
from heads.classification import ClassificationHead
from heads.classification.links import chosen
from heads.classification.losses import LOSSES

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


VARIANTS = [
    (kind, classifier, loss)
    for kind, losses in LOSSES.items()
    for classifier in ("linear", "mlp", "cosine")
    for loss in losses
]


@pytest.mark.parametrize(("kind", "classifier", "loss"), VARIANTS)
def test_every_classifier_and_loss_learns_twenty_images_by_heart(kind, classifier, loss):
    head = make_head(kind, classifier=classifier, loss=loss).train()
    # of one length, so that a cosine can tell what a linear layer can
    embedding = 3 * torch.nn.functional.normalize(torch.randn(20, 12), dim=1)
    if kind == "multilabel":
        labels = (embedding @ torch.randn(12, 6) > 0).float()
        target = MultilabelTarget(labels, torch.rand(20, 6) < 0.8)
    else:
        grade = embedding[:, 0].argsort().argsort() * 6 // 20
        # grades lie in a row; classes lie around
        labels = grade if kind == "ordinal" else embedding[:, :6].argmax(1)
        target = MulticlassTarget(labels)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    start = next(head.parameters()).detach().clone()
    for _ in range(400):
        (term,) = head.loss(head(Features([], None, embedding, (64, 64))), target).values()
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert not torch.equal(start, next(head.parameters()))
    prediction = head.eval().predict_features(Features([], None, embedding, (64, 64)))
    found = chosen(prediction.probabilities, kind, head.thresholds)
    if kind == "multilabel":
        assert torch.equal(found[target.known], labels[target.known] > 0)
    else:
        assert torch.equal(found.int().argmax(1), labels)


def test_defaults_are_one_linear_layer_and_plain_losses():
    for kind, name in (
        ("multilabel", "bce"),
        ("multiclass", "cross_entropy"),
        ("ordinal", "coral"),
    ):
        head = make_head(kind)
        assert head.criterion.name == name
        assert head.start_samples == 0
    names = set(make_head("multilabel").state_dict())
    assert names == {"linear.weight", "linear.bias", "temperature", "thresholds"}
    assert make_head("ordinal").main_metric == "qwk"
    assert make_head("multiclass").main_metric == "auroc"


def test_a_binary_task_is_one_label():
    task = TaskSpec("shenzhen", "tb", "multilabel", ("tuberculosis",))
    head = ClassificationHead(task, INFO, loss="focal", classifier="mlp", hidden=5)
    assert head.linear.weight.shape == (1, 5)
    assert head.predict_features(make_features(3)).probabilities.shape == (3, 1)


@pytest.mark.parametrize("loss", ["coral", "corn"])
def test_probabilities_of_grades_sum_to_one(loss):
    head = make_head("ordinal", loss=loss)
    rows = head.predict(head(make_features(5)) * 20).probabilities
    assert rows.shape == (5, 6)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    assert (rows >= 0).all()


def test_class_weights_by_name_reach_the_loss():
    head = make_head("multilabel", class_weights={"Mass": 0, "Hernia": 5})
    known = torch.zeros(2, 6, dtype=torch.bool)
    known[0, 2] = known[1, 4] = True
    logits = torch.randn(2, 6)
    found = head.loss(logits, MultilabelTarget(torch.ones(2, 6), known))["bce"]
    torch.testing.assert_close(found, torch.nn.functional.softplus(-logits[1, 4]))


@pytest.mark.parametrize(
    ("kind", "init_args", "message"),
    [
        ("multilabel", {"classifier": "knn"}, r"\['linear', 'mlp', 'cosine'\], but got 'knn'"),
        ("multilabel", {"hidden": 8}, "hidden 8 with classifier 'linear'"),
        ("multilabel", {"classifier": "mlp", "hidden": 0}, "at least 1.*hidden 0"),
        ("multiclass", {"class_weights": {"Fracture": 2}}, "names 'Fracture'.*'Atelectasis'"),
        ("ordinal", {"loss": "bce"}, r"\['coral', 'corn'\]"),
    ],
)
def test_wrong_arguments_name_the_task_and_what_is_possible(kind, init_args, message):
    with pytest.raises(ConfigError, match="head of task nih14/findings.*" + message):
        make_head(kind, **init_args)


def test_one_grade_is_none():
    with pytest.raises(ConfigError, match=r"toy/grade: an ordinal task needs at least 2.*\['a'\]"):
        ClassificationHead(TaskSpec("toy", "grade", "ordinal", ("a",)), INFO)
