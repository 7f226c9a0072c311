"""Every loss against plain formulas or the library that has it, on hard and soft labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from ark.types import ConfigError, MulticlassTarget, MultilabelTarget
from heads.classification.losses import LOSSES, ClassLoss, class_weights

CLASSES = ("a", "b", "c", "d")
ALL = [(kind, name) for kind, losses in LOSSES.items() for name in losses]


def make(kind, name=None, smoothing=0.0, weights=None, **loss_args):
    by_class = class_weights(weights, CLASSES, "head of task toy/labels")
    return ClassLoss(kind, name, loss_args, by_class, smoothing, "head of task toy/labels")


def make_logits(kind, batch=12, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, 3 if kind == "ordinal" else 4).mul(3).requires_grad_()


def make_target(kind, batch=12, seed=0, soft=False):
    rng = torch.Generator().manual_seed(seed)
    if kind != "multilabel":
        return MulticlassTarget(torch.randint(0, 4, (batch,), generator=rng))
    labels = torch.rand(batch, 4, generator=rng)
    labels = labels if soft else labels.round()
    return MultilabelTarget(labels, torch.rand(batch, 4, generator=rng) < 0.6)


def asymmetric_by_hand(z, y, gamma_neg, gamma_pos, clip):
    p = 1 / (1 + np.exp(-z))
    shifted = max(p - clip, 0)
    present = (1 - p) ** gamma_pos * np.log(p)
    absent = shifted**gamma_neg * np.log(1 - shifted)
    return -y * present - (1 - y) * absent


def focal_by_hand(z, y, gamma, alpha):
    p = 1 / (1 + np.exp(-z))
    one, other = (1, 1) if alpha == -1 else (alpha, 1 - alpha)
    present, absent = (1 - p) ** gamma * np.log(p), p**gamma * np.log(1 - p)
    return -y * one * present - (1 - y) * other * absent


def bce_by_hand(z, y):
    return focal_by_hand(z, y, 0, -1)


BY_HAND = {"bce": bce_by_hand, "focal": focal_by_hand, "asymmetric": asymmetric_by_hand}
YES_NO = [
    ("bce", {}),
    ("focal", {"gamma": 2.0, "alpha": 0.25}),
    ("focal", {"gamma": 0, "alpha": -1}),
    ("focal", {"gamma": 1.5, "alpha": 1}),
    ("asymmetric", {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05}),
    ("asymmetric", {"gamma_neg": 2, "gamma_pos": 1, "clip": 0}),
    ("asymmetric", {"gamma_neg": 0, "gamma_pos": 0, "clip": 0.2}),
]


@pytest.mark.parametrize(
    ("weights", "scale"),
    [(None, [1, 1, 1, 1]), ([1, 0, 3, 0.5], [1, 0, 3, 0.5]), ({"b": 4}, [1, 4, 1, 1])],
)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("name", "args"), YES_NO)
def test_yes_no_losses_are_weighted_means_of_their_formula_over_known_labels(
    name, args, soft, weights, scale
):
    z, target = make_logits("multilabel").detach(), make_target("multilabel", soft=soft)
    total = weight = 0.0
    for n, k in target.known.nonzero().tolist():
        y = 0.9 * float(target.labels[n, k]) + 0.05
        total += scale[k] * BY_HAND[name](float(z[n, k]), y, **args)
        weight += scale[k]
    found = float(make("multilabel", name, 0.1, weights, **args)(z, target))
    assert found == pytest.approx(total / weight, rel=1e-5)


def test_focal_is_torchvisions_on_hard_labels():
    z, target = make_logits("multilabel"), make_target("multilabel")
    theirs = sigmoid_focal_loss(z, target.labels, alpha=0.25, gamma=2.0)[target.known].mean()
    torch.testing.assert_close(make("multilabel", "focal")(z, target), theirs)


@pytest.mark.parametrize(("name", "args"), YES_NO)
def test_a_soft_label_is_a_share_of_present_images(name, args):
    """A label of 0.7 has the loss and gradient of ten copies of which seven are positive."""
    loss = make("multilabel", name, **args)
    z = torch.tensor([[0.3, -1.0, 2.0, 8.0]], requires_grad=True)
    known = torch.ones(1, 4, dtype=torch.bool)
    soft = loss(z, MultilabelTarget(torch.full((1, 4), 0.7), known))
    hard = torch.cat([torch.ones(7, 4), torch.zeros(3, 4)])
    copies = loss(z.expand(10, 4), MultilabelTarget(hard, known.expand(10, 4)))
    torch.testing.assert_close(soft, copies)
    mine, theirs = (torch.autograd.grad(value, z)[0] for value in (soft, copies))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0, 0.5]])
def test_cross_entropy_is_torchs(smoothing, weights):
    z, target = make_logits("multiclass"), make_target("multiclass")
    by_class = None if weights is None else torch.tensor(weights)
    theirs = F.cross_entropy(z, target.labels, by_class, label_smoothing=smoothing)
    loss = make("multiclass", None, smoothing, weights)
    torch.testing.assert_close(loss(z, target), theirs)
    plain = make("multiclass", "focal", smoothing, weights, gamma=0)
    torch.testing.assert_close(plain(z, target), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_class_against_the_rest_is_torchs_binary_loss_of_the_one_hot_label(smoothing):
    g = torch.Generator().manual_seed(5)
    z, labels = torch.randn(7, 4, generator=g), torch.randint(0, 4, (7,), generator=g)
    hard = F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 2
    for weights in (torch.ones(4), torch.tensor([1.0, 3.0, 0.5, 0.0])):
        ours = ClassLoss("multiclass", "bce", None, weights, smoothing, "x")(
            z, MulticlassTarget(labels)
        )
        each = F.binary_cross_entropy_with_logits(z, hard, reduction="none").mean(dim=1)
        theirs = (each * weights[labels]).sum() / weights[labels].sum()
        torch.testing.assert_close(ours, theirs)


def test_focal_of_one_class_an_image_weighs_by_what_is_missing():
    z, target = make_logits("multiclass"), make_target("multiclass")
    of_truth = z.softmax(1)[torch.arange(12), target.labels]
    expected = ((1 - of_truth) ** 3 * -of_truth.log()).mean()
    torch.testing.assert_close(make("multiclass", "focal", gamma=3)(z, target), expected)


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0, 0.5]])
def test_ordinal_losses_ask_whether_the_truth_is_beyond_each_class(weights):
    z, target = make_logits("ordinal").detach(), make_target("ordinal")
    scale = weights or [1.0] * 4
    sums = {"coral": [0.0, 0.0], "corn": [0.0, 0.0]}
    for row, y in zip(z.tolist(), target.labels.tolist(), strict=True):
        each = [bce_by_hand(a, float(y > k)) for k, a in enumerate(row)]
        sums["coral"][0] += scale[y] * sum(each)
        sums["coral"][1] += scale[y]
        for k, term in enumerate(each):
            if y >= k:
                sums["corn"][0] += scale[y] * term
                sums["corn"][1] += scale[y]
    for name, (total, weight) in sums.items():
        found = float(make("ordinal", name, 0.0, weights)(z, target))
        assert found == pytest.approx(total / weight, rel=1e-5), name


def test_smoothing_softens_the_questions_of_ordinal_losses():
    z, target = torch.zeros(1, 3, requires_grad=True), MulticlassTarget(torch.tensor([3]))
    make("ordinal", "coral", smoothing=0.5)(z, target).backward()
    torch.testing.assert_close(z.grad, torch.full((1, 3), -0.25))  # 0.5 - 0.75


@pytest.mark.parametrize("name", LOSSES["multilabel"])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_nothing_known_costs_nothing_and_teaches_nothing(name, batch):
    z, target = make_logits("multilabel", batch), make_target("multilabel", batch)
    target.known[:] = False
    loss = make("multilabel", name)(z * 1e4, target)
    loss.backward()
    assert loss == 0
    assert not z.grad.any()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_no_image_and_no_weight_cost_nothing(kind, name):
    loss = make(kind, name, weights={"a": 0, "b": 0, "c": 0, "d": 1})
    target = make_target(kind, 5)
    if kind == "multilabel":
        target.known[:, 3] = False
    else:
        target.labels[:] = 1
    for rows in (0, 5):
        z = make_logits(kind, rows)
        part = type(target)(**{k: v[:rows] for k, v in vars(target).items()})
        value = loss(z, part)
        value.backward()
        assert value == 0, rows
        assert not z.grad.any()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_only_the_proportions_of_class_weights_matter(kind, name):
    z, target = make_logits(kind), make_target(kind)
    great, small = (make(kind, name, 0.0, [f, 2 * f, 3 * f, f])(z, target) for f in (7, 1e-3))
    torch.testing.assert_close(great, small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_extreme_logits_keep_loss_and_gradient_finite(kind, name, dtype):
    target = make_target(kind, 12, soft=True)
    z = (make_logits(kind).detach().sign() * 6e4).to(dtype).requires_grad_()
    value = make(kind, name)(z, target)
    assert value.dtype == torch.float32
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", ["focal", "asymmetric"])
def test_extreme_logits_without_clip_or_gamma_cost_what_bce_costs(name):
    target = make_target("multilabel")
    z = (make_logits("multilabel").detach().sign() * 6e4).requires_grad_()
    off = {"focal": {"gamma": 0, "alpha": -1}, "asymmetric": {"gamma_neg": 0, "clip": 0}}[name]
    value = make("multilabel", name, **off)(z, target)
    torch.testing.assert_close(value, make("multilabel")(z, target))
    value.backward()
    assert z.grad.isfinite().all()
    assert z.grad.any()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "multilabel",
            {"name": "dice"},
            r"toy/labels: expected loss.*\['bce', 'focal', 'asymm.*dice",
        ),
        ("multiclass", {"name": "coral"}, r"\['cross_entropy', .*'bce'\].*multiclass.*'coral'"),
        ("ordinal", {"name": "focal"}, r"\['coral', 'corn'\].*ordinal.*'focal'"),
        ("multilabel", {"gamma": 2}, r"loss_args.gamma: loss 'bce'.*accepts \[\]"),
        ("multiclass", {"name": "focal", "alpha": 1}, r"loss_args.alpha.*accepts \['gamma'\]"),
        ("multiclass", {"smoothing": 1.0}, r"label_smoothing in \[0, 1\), but got 1.0"),
        ("multilabel", {"name": "focal", "gamma": 0.5}, "expected 0 or at least 1, but got 0.5"),
        ("multilabel", {"name": "focal", "alpha": 2}, r"\[0, 1\], or -1.*got 2"),
        ("multilabel", {"name": "asymmetric", "clip": 1}, r"loss_args.clip.*\[0, 1\).*got 1"),
        ("multilabel", {"name": "asymmetric", "gamma_neg": -1}, "loss_args.gamma_neg.*got -1"),
        ("multilabel", {"weights": {"e": 1}}, r"class_weights names 'e'.*\['a', 'b', 'c', 'd'\]"),
        ("multilabel", {"weights": [1, 2]}, "expected 4 class_weights.*got 2"),
        ("multilabel", {"weights": [1, 2, 3, -1]}, "class_weights >= 0.*-1"),
        ("multilabel", {"weights": [0] * 4}, "one above 0"),
        ("multilabel", {"weights": [1, 2, 3, float("nan")]}, "class_weights >= 0.*nan"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_possible(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(kind, **arguments)
