"""Probabilities of classes from logits and back."""

import numpy as np
import pytest
import torch

from heads.classification.classifiers import CosineLinear, Cutpoints
from heads.classification.links import LINKS, chosen

ROWS = [name for name in LINKS if name != "sigmoid"]


def make_logits(name, spread=3.0, rows=50, seed=0):
    z = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).double() * spread
    return z.sort(dim=1, descending=True).values if name == "coral" else z


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("spread", [0.0, 3.0, 1e3, 1e5])
def test_rows_are_distributions_whatever_the_logits(name, spread):
    rows = LINKS[name].probabilities(make_logits(name, spread).float())
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(1), torch.ones(50))


def test_ordinal_logits_mean_what_the_papers_say():
    a = make_logits("coral")
    rows = LINKS["coral"].probabilities(a)
    beyond = torch.stack([rows[:, k + 1 :].sum(1) for k in range(4)], dim=1)
    torch.testing.assert_close(beyond, a.sigmoid())
    rows = LINKS["corn"].probabilities(make_logits("corn"))
    for k in range(4):
        conditional = rows[:, k + 1 :].sum(1) / rows[:, k:].sum(1)
        torch.testing.assert_close(conditional, make_logits("corn")[:, k].sigmoid())


@pytest.mark.parametrize("name", LINKS)
def test_logits_come_back_from_float32_probabilities(name):
    z = make_logits(name)
    found = LINKS[name].logits(LINKS[name].probabilities(z.float()).double())
    if name == "softmax":
        z, found = (x - x.mean(1, keepdim=True) for x in (z, found))
    torch.testing.assert_close(found, z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.clamp(max=5), z.clamp(max=5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_probabilities_of_zero_and_one_have_finite_logits(name, certain):
    rows = torch.zeros(3, 4)
    rows[:, 1] = certain
    assert LINKS[name].logits(rows.double()).isfinite().all()


@pytest.mark.parametrize("name", LINKS)
def test_probabilities_carry_a_finite_gradient(name):
    z = make_logits(name).float().requires_grad_()
    LINKS[name].probabilities(z)[:, 1].sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.any()


def test_what_is_chosen():
    rows = torch.tensor([[0.4, 0.1, 0.1, 0.4], [0.1, 0.45, 0.15, 0.3], [0.7, 0.1, 0.1, 0.1]])
    thresholds = torch.tensor([0.4, 0.2, 0.05, 0.5])
    assert chosen(rows, "multilabel", thresholds).int().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 1, 0],
        [1, 0, 1, 0],
    ]
    assert chosen(rows, "multiclass", thresholds).int().argmax(1).tolist() == [0, 1, 0]
    assert chosen(rows, "ordinal", thresholds).int().argmax(1).tolist() == [1, 1, 0]
    distance = torch.arange(4.0)[:, None].sub(torch.arange(4.0)).abs()
    for row in make_logits("softmax").softmax(1).float():
        best = int((distance @ row).argmin())
        assert chosen(row[None], "ordinal", thresholds)[0, best]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_cutpoints_start_evenly_and_stay_in_order(classes):
    cutpoints = Cutpoints(classes)
    start = cutpoints(torch.zeros(1, 1))[0]
    torch.testing.assert_close(start.detach(), -start.detach().flip(0))
    np.testing.assert_allclose(start.diff().detach(), -1, rtol=1e-5)
    torch.nn.init.normal_(cutpoints.steps, std=5)
    moved = cutpoints(torch.zeros(1, 1))[0]
    assert (moved.diff() <= 0).all()
    shifted = cutpoints(torch.full((1, 1), 2.0))[0]
    torch.testing.assert_close(shifted, moved + 2)


def test_cosine_logits_are_scaled_cosines_and_know_no_length():
    torch.manual_seed(0)
    layer, x = CosineLinear(6, 3, bias=True), torch.randn(5, 6)
    cosines = torch.nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), 10 * cosines)
    torch.testing.assert_close(layer(100 * x), layer(x))
    layer(x).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())
    assert CosineLinear(6, 3, bias=False)(torch.zeros(1, 6)).isfinite().all()
