from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy.optimize import minimize
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ark.surgery import CAGrad, PCGrad, Surgery
from ark.types import ConfigError

TRUNK, HEADS = 5, 3


class Tasks(nn.Module):
    """A trunk that all use, and a head each."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(4, TRUNK)
        self.heads = nn.ModuleList(nn.Linear(TRUNK, 1) for _ in range(HEADS))
        self.double()

    def losses(self, images: Tensor) -> list[Tensor]:
        return [
            (head(torch.tanh(self.trunk(images + n))) - (-1) ** n).square().mean()
            for n, head in enumerate(self.heads)
        ]

    def forward(self, images: Tensor, surgery: Surgery) -> Tensor:
        return surgery.combine(self.losses(images), self.parameters())


IMAGES = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def trunk_gradients(network: Tasks, images: Tensor = IMAGES) -> np.ndarray:
    """(K, P) of each task alone."""
    trunk = list(network.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk) for loss in network.losses(images)]
    return np.stack([np.concatenate([g.numpy().ravel() for g in row]) for row in rows])


def trunk_gradient(network: Tasks) -> np.ndarray:
    return np.concatenate([p.grad.numpy().ravel() for p in network.trunk.parameters()])


def pcgrad(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Algorithm 1 of arXiv 2001.06782 for each possible order of the others."""
    tasks = range(len(rows))
    orders = [itertools.permutations([j for j in tasks if j != i]) for i in tasks]
    for chosen in itertools.product(*orders):
        total = np.zeros_like(rows[0])
        for i, order in enumerate(chosen):
            g = rows[i].copy()
            for j in order:
                if g @ rows[j] < 0:
                    g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
            total += g
        yield total


def cagrad(rows: np.ndarray, c: float) -> np.ndarray:
    """Algorithm 1 of arXiv 2110.14048: w from the dual, here over logits instead of the simplex."""
    mean = rows.mean(axis=0)
    radius = c * np.linalg.norm(mean)

    def joined(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits - logits.max())
        return weights / weights.sum() @ rows

    def dual(logits: np.ndarray) -> float:
        return joined(logits) @ mean + radius * np.linalg.norm(joined(logits))

    found = minimize(
        dual,
        np.zeros(len(rows)),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-15, "maxfev": 20000},
    )
    g = joined(found.x)
    return mean + radius * g / np.linalg.norm(g)


def simplex(count: int, parts: int = 40) -> np.ndarray:
    """(N, K) all weights that are multiples of 1 / parts."""
    grid = itertools.product(range(parts + 1), repeat=count - 1)
    inside = np.array([each for each in grid if sum(each) <= parts])
    return np.column_stack([inside, parts - inside.sum(axis=1)]) / parts


@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_is_the_algorithm_in_one_of_its_orders(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(2 + seed % 3, 4))
    weights = PCGrad().weights(torch.from_numpy(rows @ rows.T)).numpy()
    assert any(np.allclose(weights @ rows, one) for one in pcgrad(rows))
    if (rows @ rows.T).min() < 0:
        assert not np.allclose(weights, 1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_solves_its_problem(seed: int, c: float) -> None:
    """Equation 2 of arXiv 2110.14048: no step in the ball can serve the worst-off task better than
    any bound of the dual says, and this one does as well."""
    rows = np.random.default_rng(seed).normal(size=(2 + seed % 3, 6)) * 10.0 ** (seed % 5 - 2)
    mean, weights = rows.mean(axis=0), CAGrad(c).weights(torch.from_numpy(rows @ rows.T)).numpy()
    step, size = weights @ rows / len(rows), np.linalg.norm(mean)
    assert np.linalg.norm(step - mean) <= c * size * (1 + 1e-6)
    points = simplex(len(rows)) @ rows
    bound = (points @ mean + c * size * np.linalg.norm(points, axis=1)).min()
    assert (rows @ step).min() == pytest.approx(bound, abs=2e-3 * np.square(rows).sum(axis=1).max())
    assert (rows @ step).min() >= (rows @ cagrad(rows, c)).min() - 1e-6 * np.square(rows).sum()


def test_cagrad_without_radius_or_conflict_or_length_is_the_sum() -> None:
    rows = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(CAGrad(0.0).weights(rows @ rows.T), torch.ones(3).double())
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    for gramian in (torch.zeros(2, 2, dtype=torch.float64), opposite):
        torch.testing.assert_close(CAGrad(0.5).weights(gramian), torch.ones(2).double())


def test_a_recipe_names_a_surgery_by_its_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--surgery", type=Surgery | None, default=None)
    config = {"class_path": "ark.surgery.CAGrad", "init_args": {"c": 0.3}}
    found = parser.instantiate_classes(parser.parse_object({"surgery": config}))
    assert found.surgery == CAGrad(0.3)


@pytest.mark.parametrize("c", [-0.1, 1.0])
def test_a_radius_out_of_range_is_an_error(c: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.surgery: c .*expected a number in \[0, 1\)"):
        CAGrad(c)


def test_backward_gives_the_trunk_the_combined_and_each_head_its_own_gradient() -> None:
    network, surgery = Tasks(), CAGrad(0.5)
    losses = network.losses(IMAGES)
    heads = [torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
             for loss, head in zip(losses, network.heads, strict=True)]  # fmt: skip
    rows = trunk_gradients(network)
    total = network(IMAGES, surgery)
    torch.testing.assert_close(total.detach(), sum(losses).detach())
    (total / 4).backward()  # as accumulation and loss scaling do
    expected = cagrad(rows, 0.5) * HEADS / 4
    np.testing.assert_allclose(
        trunk_gradient(network), expected, atol=2e-4 * np.linalg.norm(expected)
    )
    assert not np.allclose(expected, rows.sum(axis=0) / 4, rtol=0.05), "no conflict was there"
    for head, own in zip(network.heads, heads, strict=True):
        for parameter, gradient in zip(head.parameters(), own, strict=True):
            torch.testing.assert_close(parameter.grad, gradient / 4)


def test_micro_batches_accumulate() -> None:
    network = Tasks()
    for images in (IMAGES[:3], IMAGES[3:]):
        (network(images, CAGrad(0.4)) / 2).backward()
    halves = [cagrad(trunk_gradients(network, images), 0.4) for images in (IMAGES[:3], IMAGES[3:])]
    expected = HEADS * (halves[0] + halves[1]) / 2
    np.testing.assert_allclose(trunk_gradient(network), expected, atol=5e-4)


def test_locked_parts_have_no_gradient_and_no_say() -> None:
    network, other = Tasks(), Tasks()
    network.trunk.weight.requires_grad_(False)
    network.heads[1].requires_grad_(False)
    network(IMAGES, CAGrad(0.5)).backward()
    assert network.trunk.weight.grad is None
    assert all(p.grad is None for p in network.heads[1].parameters())
    bias = trunk_gradients(other)[:, -TRUNK:]
    expected = HEADS * cagrad(bias, 0.5)
    np.testing.assert_allclose(network.trunk.bias.grad.numpy(), expected, atol=1e-3)


def test_with_the_trunk_locked_or_one_task_it_is_the_plain_sum() -> None:
    network, plain = Tasks(), Tasks()
    for each in (network, plain):
        each.trunk.requires_grad_(False)
    network(IMAGES, PCGrad()).backward()
    sum(plain.losses(IMAGES)).backward()
    for mine, theirs in zip(network.heads.parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    loss = network.losses(IMAGES)[0]
    assert torch.equal(PCGrad().combine([loss], network.parameters()), loss)


def test_a_gradient_that_is_not_finite_is_handed_on_for_a_scaler_to_see() -> None:
    for surgery in (PCGrad(), CAGrad()):
        network = Tasks()
        losses = network.losses(IMAGES)
        losses[1] = losses[1] * float("inf")
        surgery.combine(losses, network.parameters()).backward()
        assert not network.trunk.weight.grad.isfinite().all()

    class Unasked(Surgery):
        def weights(self, gramian: Tensor) -> Tensor:
            raise AssertionError("a solver would be given nan")

    Unasked().combine(losses, network.parameters())


def test_under_autocast_the_gradients_are_those_outside() -> None:
    network = Tasks().float()
    losses = network.losses(IMAGES.float())
    with torch.autocast("cpu", torch.bfloat16):
        CAGrad(0.5).combine(losses, network.parameters()).backward()
    inside = network.trunk.weight.grad.clone()
    network.zero_grad()
    CAGrad(0.5).combine(losses, network.parameters()).backward()
    torch.testing.assert_close(inside, network.trunk.weight.grad)


def test_reduced_rows_are_what_is_joined() -> None:
    network = Tasks()
    mine, theirs = (trunk_gradients(network, images) for images in (IMAGES[:3], IMAGES[3:]))
    CAGrad(0.5).combine(
        network.losses(IMAGES[:3]),
        network.parameters(),
        reduce=lambda rows: (rows + torch.from_numpy(theirs)) / 2,
    ).backward()
    expected = HEADS * cagrad((mine + theirs) / 2, 0.5)
    np.testing.assert_allclose(trunk_gradient(network), expected, atol=1e-3)


@pytest.mark.slow
def test_ddp_takes_the_mean_of_what_the_ranks_combined(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (tmp_path / "meet",), nprocs=2)


def _rank(rank: int, meet: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    network = Tasks()
    parts = IMAGES[:3], IMAGES[3:]
    rows = [trunk_gradients(network, images) for images in parts]
    wrapped = DistributedDataParallel(network, find_unused_parameters=True)
    wrapped(parts[rank], CAGrad(0.5)).backward()
    expected = HEADS * (cagrad(rows[0], 0.5) + cagrad(rows[1], 0.5)) / 2
    np.testing.assert_allclose(trunk_gradient(network), expected, atol=1e-3)
    distributed.destroy_process_group()


@pytest.mark.parametrize("seed", range(8))
def test_cagrad_stays_near_the_mean_where_nothing_serves_all(seed: int) -> None:
    """Two tasks against each other and a third at right angles: the dual ends where what it finds
    is shorter than the rounding of the Gramian."""
    generator = torch.Generator().manual_seed(seed)
    one, third, noise = torch.randn(3, 200_000, generator=generator)
    third -= (third @ one) / (one @ one) * one
    rows = torch.stack([one, 10.0**-seed * noise - one, third / 2])
    mean = rows.mean(dim=0)
    apart = CAGrad(0.5)._join(rows) / len(rows) - mean
    assert apart.norm() <= 0.51 * mean.norm()
