"""Weights from class means solve what nearest means can solve, at once."""

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

CLASSES = ("a", "b", "c", "d")
INFO = FeatureInfo((16,), (16,), pooled=12, embedding=12, image_size=64)


def make_head(kind, **init_args):
    torch.manual_seed(0)
    head = ClassificationHead(TaskSpec("toy", "labels", kind, CLASSES), INFO, **init_args)
    return head.eval()


def features(embedding):
    return Features([], None, embedding, (64, 64))


def probabilities(head, embedding):
    return head.predict_features(features(embedding)).probabilities


def clusters(count=200, seed=0, classes=4):
    """Points around four corners, all far from the origin on one side of it."""
    torch.manual_seed(seed)
    labels = torch.randint(0, classes, (count,))
    centres = torch.eye(4, 12) * 4 + 6
    return centres[labels] + 0.4 * torch.randn(count, 12), labels


def yes_no(count=300, seed=0):
    """Four directions that are each present or not; class a is rare."""
    torch.manual_seed(seed)
    chance = torch.tensor([0.05, 0.5, 0.5, 0.8])
    labels = (torch.rand(count, 4) < chance).float()
    return labels @ (torch.eye(4, 12) * 4) + 6 + 0.2 * torch.randn(count, 12), labels


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_separable_classes_are_told_apart_at_once(classifier):
    head = make_head("multiclass", classifier=classifier)
    embedding, labels = clusters()
    before = (probabilities(head, embedding).argmax(1) == labels).float().mean()
    head.init_prototypes(embedding, MulticlassTarget(labels))
    fresh, truth = clusters(seed=1)
    rows = probabilities(head, fresh)
    assert before < 0.7
    assert (rows.argmax(1) == truth).all()
    nearest = torch.cdist(fresh, torch.stack([embedding[labels == k].mean(0) for k in range(4)]))
    assert torch.equal(rows.argmax(1), nearest.argmin(1))


def test_the_nearest_mean_wins_also_where_means_lie_in_a_row():
    embedding = torch.zeros(90, 12)
    labels = torch.arange(90) % 3
    embedding[:, 0] = labels * 2.0 + torch.linspace(-0.5, 0.5, 90)
    head = make_head("multiclass")
    head.init_prototypes(embedding, MulticlassTarget(labels))
    with torch.no_grad():
        logits = head(features(embedding))[:, :3]
    assert torch.equal(logits.argmax(1), labels)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_separable_yes_no_labels_are_told_apart_at_once(classifier):
    head = make_head("multilabel", classifier=classifier)
    embedding, labels = yes_no()
    known = torch.rand(labels.shape) < 0.7
    wrong = torch.where(known, labels, 1 - labels)  # what nobody knows must not matter
    head.init_prototypes(embedding, MultilabelTarget(wrong, known))
    fresh, truth = yes_no(seed=1)
    assert torch.equal((probabilities(head, fresh) >= 0.5).float(), truth)


def test_the_weight_of_a_label_is_the_mean_of_positives_minus_that_of_negatives():
    head, (embedding, labels) = make_head("multilabel"), yes_no()
    soft = labels * 0.4 + 0.3  # 0.7 counts as present, 0.3 as absent
    head.init_prototypes(embedding, MultilabelTarget(soft, torch.ones_like(soft).bool()))
    for k in range(4):
        on = labels[:, k] > 0
        middles = [embedding[on].mean(0), embedding[~on].mean(0)]
        difference = middles[0] - middles[1]
        weight = head.linear.weight[k].detach()
        torch.testing.assert_close(weight / weight.norm(), difference / difference.norm())
        at = [head(features(m[None]))[0, k].item() for m in middles]
        assert at == pytest.approx([2.0, -2.0], abs=1e-4)


@pytest.mark.parametrize("classifier", ["linear", "cosine", "mlp"])
@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_batches_give_what_all_at_once_give(kind, classifier):
    hidden = 7 if classifier == "mlp" else None
    whole, parts = (
        make_head(kind, classifier=classifier, hidden=hidden, prototypes=64) for _ in range(2)
    )
    start = parts.linear.weight.detach().clone()
    embedding, labels = yes_no() if kind == "multilabel" else clusters()
    known = torch.ones(len(labels), 4, dtype=torch.bool)

    def target(part):
        if kind == "multilabel":
            return MultilabelTarget(labels[part], known[part])
        return MulticlassTarget(labels[part])

    everything = torch.arange(len(labels))
    whole.init_prototypes(embedding, target(everything))
    batches = everything.split(17)
    parts.start((features(embedding[part]), target(part)) for part in batches)
    assert parts.start_samples == 64
    assert not torch.equal(parts.linear.weight, start)
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_a_class_without_examples_keeps_its_random_start(kind, classifier):
    head, untouched = (make_head(kind, classifier=classifier) for _ in range(2))
    embedding, labels = clusters(classes=2)
    target = MulticlassTarget(labels)
    if kind == "multilabel":  # c has no positive, d no known label
        known = torch.ones(len(labels), 4, dtype=torch.bool)
        known[:, 3] = False
        target = MultilabelTarget(torch.nn.functional.one_hot(labels, 4).float(), known)
    head.init_prototypes(embedding, target)
    assert torch.equal(head.linear.weight[2:], untouched.linear.weight[2:])
    assert not torch.isclose(head.linear.weight[:2], untouched.linear.weight[:2]).all(1).any()
    head.start([])
    assert all(p.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_weights_do_not_depend_on_where_the_origin_is(kind):
    """Also where a class has no example, whose mean is nowhere."""
    near, far = make_head(kind), make_head(kind)
    embedding, labels = clusters(classes=3)
    target = MulticlassTarget(labels)
    if kind == "multilabel":
        known = torch.ones(len(labels), 4, dtype=torch.bool)
        target = MultilabelTarget(torch.nn.functional.one_hot(labels, 4).float(), known)
    near.init_prototypes(embedding, target)
    far.init_prototypes(embedding + 50, target)
    torch.testing.assert_close(near.linear.weight, far.linear.weight)
    logits = (head(features(x))[:, :3] for head, x in ((near, embedding), (far, embedding + 50)))
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_no_sample_at_all_changes_nothing():
    head, untouched = make_head("multiclass", prototypes=8), make_head("multiclass", prototypes=8)
    head.start([])
    assert torch.equal(head.linear.weight, untouched.linear.weight)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_equal_embeddings_give_finite_weights(kind):
    head = make_head(kind)
    labels = torch.arange(8) % 4
    target = MulticlassTarget(labels)
    if kind == "multilabel":
        known = torch.ones(8, 4, dtype=torch.bool)
        target = MultilabelTarget(torch.nn.functional.one_hot(labels, 4).float(), known)
    head.init_prototypes(torch.ones(8, 12), target)
    assert all(p.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("multilabel", -1, "toy/labels: expected prototypes.*got -1"),
        ("multiclass", True, "number of training samples.*got True"),
        ("ordinal", 64, "ordinal task .* no prototypes"),
    ],
)
def test_prototypes_that_cannot_be_are_refused(kind, value, message):
    with pytest.raises(ConfigError, match=message):
        make_head(kind, prototypes=value)
