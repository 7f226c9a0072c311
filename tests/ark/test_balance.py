from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from ark.balance import (
    Balance,
    BalanceFactory,
    DynamicWeightAverage,
    Fixed,
    GradNorm,
    Uncertainty,
)
from ark.types import ConfigError, TaskSpec
from toys import make_task

TASKS = [make_task(kind) for kind in ("multilabel", "detection", "segmentation")]
KEYS = [task.key for task in TASKS]
A, B, C = KEYS


def values(balance: Balance) -> list[float]:
    return [float(balance.weight(key)) for key in KEYS]


def observe(
    balance: Balance, losses: dict[str, float], norms: dict[str, float] | None = None
) -> None:
    norms = norms or {}
    balance.observe(
        {key: torch.tensor(value) for key, value in losses.items()},
        {key: torch.tensor(value) for key, value in norms.items()},
    )


def test_fixed_weights_by_key_and_kind_are_one_elsewhere_and_not_in_a_checkpoint() -> None:
    balance = Fixed(TASKS, {A: 0.5, "multilabel": 9.0, "detection": 3.0})
    assert values(balance) == [0.5, 3.0, 1.0]
    loss = torch.tensor(1.7, requires_grad=True)
    balance.weigh(B, loss).backward()
    assert loss.grad == 3
    assert not balance.state_dict()
    assert torch.equal(Fixed(TASKS).weigh(A, loss), loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(TASKS, {"toy/nobody": 1.0}), "toy/nobody: 1.0; expected.*toy/detection"),
        (lambda: Fixed(TASKS, {A: -1.0}), r"multilabel: -1.0; expected a number of at least 0"),
        (lambda: Fixed(TASKS, {A: math.nan}), r"multilabel: nan; expected"),
        (lambda: GradNorm(TASKS, alpha=-1.0), "alpha -1.0"),
        (lambda: GradNorm(TASKS, momentum=1.0), "momentum 1.0"),
        (lambda: DynamicWeightAverage(TASKS, temperature=0.0), "temperature 0.0"),
    ],
)
def test_a_wrong_setting_is_an_error(make: Callable[[], Balance], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.balance: .*{message}"):
        make()


def test_uncertainty_is_the_formula_and_settles_where_its_derivative_is_zero() -> None:
    balance = Uncertainty(TASKS, start=0.3)
    loss = torch.tensor(2.0, requires_grad=True)
    weighed = balance.weigh(A, loss)
    assert float(weighed) == pytest.approx(math.exp(-0.3) * 2 + 0.15)
    weighed.backward()
    assert float(loss.grad) == pytest.approx(math.exp(-0.3))
    assert float(balance.log_variances[A].grad) == pytest.approx(-math.exp(-0.3) * 2 + 0.5)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (balance.weigh(A, torch.tensor(2.0)) + balance.weigh(B, torch.tensor(0.1))).backward()
        optimizer.step()
    assert values(balance) == pytest.approx(
        [1 / (2 * 2.0), 1 / (2 * 0.1), math.exp(-0.3)], rel=1e-3
    )


def test_the_optimiser_leaves_the_uncertainty_of_other_tasks_alone() -> None:
    balance = Uncertainty(TASKS)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)
    for task in (A, B):
        optimizer.zero_grad()
        balance.weigh(task, torch.tensor(3.0)).backward()
        before = values(balance)
        optimizer.step()
        moved = [new != old for new, old in zip(values(balance), before, strict=True)]
        assert moved == [key == task for key in KEYS]


class GradNormByHand:
    """The averages in numpy, task by task as they train."""

    def __init__(self, alpha: float, momentum: float) -> None:
        self.alpha, self.momentum = alpha, momentum
        self.first: dict[str, float] = {}
        self.loss: dict[str, float] = {}
        self.norm: dict[str, float] = {}

    def weights(self) -> dict[str, float]:
        seen = [key for key in KEYS if key in self.norm]
        progress = {key: self.loss[key] / self.first[key] for key in seen}
        mean = np.mean(list(progress.values())) if seen else 1
        wanted = {key: (progress[key] / mean) ** self.alpha / self.norm[key] for key in seen}
        share = len(seen) / sum(wanted.values()) if seen else 1
        return {key: wanted[key] * share if key in seen else 1.0 for key in KEYS}

    def observe(self, losses: dict[str, float], unweighed: dict[str, float]) -> None:
        for mine, new in ((self.loss, losses), (self.norm, unweighed)):
            for key, value in new.items():
                old = mine.get(key, value)
                mine[key] = self.momentum * old + (1 - self.momentum) * value
        for key, value in losses.items():
            self.first.setdefault(key, value)


def test_gradnorm_equals_the_averages_by_hand_in_alternating_and_concurrent_steps() -> None:
    balance, hand = GradNorm(TASKS, alpha=1.2, momentum=0.8), GradNormByHand(1.2, 0.8)
    random = np.random.default_rng(0)
    for members in [[A], [A], [B], [A, B], [C], [A, B, C], [B], [C]] * 3:
        weights = hand.weights()
        assert values(balance) == pytest.approx([weights[key] for key in KEYS], rel=1e-5)
        losses = {key: float(random.uniform(0.2, 3)) for key in members}
        norms = {key: float(random.uniform(0.2, 3)) for key in members}
        observe(balance, losses, {key: norms[key] * weights[key] for key in members})
        hand.observe(losses, norms)


def test_gradnorm_makes_the_weighed_norms_alike_or_larger_for_who_learns_slowly() -> None:
    n = {A: 1.0, B: 10.0, C: 0.1}
    for alpha, wanted in ((0.0, [1, 1, 1]), (1.0, [1, 2, 1])):
        balance = GradNorm(TASKS, alpha=alpha, momentum=0.0)
        observe(balance, dict.fromkeys(KEYS, 4.0))
        observe(balance, {A: 1.0, B: 2.0, C: 1.0}, n)  # B learned half as much
        norms = [weight * n[key] for key, weight in zip(KEYS, values(balance), strict=True)]
        assert [norm / norms[0] for norm in norms] == pytest.approx(wanted, rel=1e-5)
        assert sum(values(balance)) == pytest.approx(3, rel=1e-5)


def test_dynamic_weight_average_is_the_formula_from_the_third_cycle_on() -> None:
    balance = DynamicWeightAverage(TASKS, temperature=1.5)
    means: list[list[float]] = []
    for cycle in range(4):
        if cycle < 2:
            assert values(balance) == pytest.approx([1, 1, 1])
        else:
            ratios = np.array(means[-1]) / np.array(means[-2])
            wanted = 3 * np.exp(ratios / 1.5) / np.exp(ratios / 1.5).sum()
            assert values(balance) == pytest.approx(list(wanted), rel=1e-5)
            assert len(set(wanted)) == 3
        losses = {key: [n + 1.0 + cycle, 2.0 * n + 1] for n, key in enumerate(KEYS)}
        for key, both in losses.items():
            for loss in both:
                observe(balance, {key: loss})
        means.append([float(np.mean(both)) for both in losses.values()])
        balance.end_cycle()


def test_a_task_that_a_cycle_leaves_out_keeps_its_ratio() -> None:
    balance = DynamicWeightAverage(TASKS)
    for loss in (4.0, 2.0):
        observe(balance, {A: loss, B: 3.0})
        balance.end_cycle()
    before = values(balance)
    observe(balance, {B: 3.0})
    balance.end_cycle()
    assert values(balance) == before
    assert before[0] < before[1] == before[2]


@pytest.mark.parametrize("make", [GradNorm, DynamicWeightAverage])
def test_a_loss_that_is_not_finite_changes_nothing(
    make: Callable[[Sequence[TaskSpec]], Balance],
) -> None:
    balances = [make(TASKS), make(TASKS)]
    for n, balance in enumerate(balances):
        if n:
            observe(balance, {A: math.inf, C: math.nan}, {A: math.nan})
        for loss in (3.0, 2.0, 1.5):
            observe(balance, {A: loss, B: 1.0, C: 2 * loss}, {A: 1.0, B: 2.0, C: 3.0})
            if n:
                observe(balance, {A: math.nan, B: math.inf}, {A: math.inf, B: math.nan})
            balance.end_cycle()
    assert values(balances[1]) == values(balances[0])
    assert len(set(values(balances[0]))) > 1


@pytest.mark.parametrize("make", [Uncertainty, GradNorm, DynamicWeightAverage])
def test_a_resumed_balance_goes_on_exactly(make: Callable[[Sequence[TaskSpec]], Balance]) -> None:
    def run(balance: Balance, steps: range) -> None:
        for step in steps:
            key = KEYS[step % 3]
            weighed = balance.weigh(key, torch.tensor(1.0 + step % 5))
            if weighed.requires_grad:
                (gradient,) = torch.autograd.grad(weighed, [balance.log_variances[key]])
                with torch.no_grad():
                    balance.log_variances[key] -= 0.1 * gradient
            observe(balance, {key: 1.0 + step % 5}, {key: 0.5 + step % 4})
            if step % 7 == 6:
                balance.end_cycle()

    whole, first, second = make(TASKS), make(TASKS), make(TASKS)
    run(whole, range(40))
    run(first, range(23))
    second.load_state_dict(first.state_dict())
    run(second, range(23, 40))
    assert values(second) == values(whole)
    assert values(second) != values(first)


def test_a_recipe_names_a_balance_by_its_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--balance", type=BalanceFactory | None, default=None)
    config: dict[str, Any] = {
        "class_path": "ark.balance.GradNorm",
        "init_args": {"alpha": 0.7, "layer": "backbone.model.blocks"},
    }
    balance = parser.instantiate_classes(parser.parse_object({"balance": config})).balance(TASKS)
    assert isinstance(balance, GradNorm)
    assert (balance.alpha, balance.layer) == (0.7, "backbone.model.blocks")
    assert list(balance.index) == KEYS
