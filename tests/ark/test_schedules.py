from __future__ import annotations

import math

import pytest

from ark.errors import ConfigError
from ark.schedules import Constant, Cosine, CountedWarmup, FirstStep, Linear, Ramp, WarmupCosine


def test_constant_is_constant() -> None:
    assert [Constant(0.8)(step, 10) for step in (0, 5, 10)] == [0.8] * 3


@pytest.mark.parametrize("step", [0, 1, 37, 99, 100])
def test_cosine_is_arks_momentum(step: int) -> None:
    """m_k = 1 - 1/2 (1 - m0) (1 + cos(pi k / K)) with m0 = 0.9 (spec ark.md)."""
    expected = 1 - 0.5 * (1 - 0.9) * (1 + math.cos(math.pi * step / 100))
    assert Cosine(0.9, 1.0)(step, 100) == pytest.approx(expected)


def test_warmup_rises_to_one_and_falls_to_the_end() -> None:
    values = [WarmupCosine(0.1, end=0.01)(step, 100) for step in range(101)]
    assert values[0] > 0
    assert values[:10] == sorted(values[:10])
    assert values[10] == pytest.approx(1.0)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(0.01)


def test_linear_is_straight() -> None:
    assert [Linear(2.0, 4.0)(step, 4) for step in range(5)] == [2.0, 2.5, 3.0, 3.5, 4.0]


@pytest.mark.parametrize("done", [1, 5, 19, 20, 21, 500, 2999, 3000])
def test_foundation_xs_rate_by_tasks_done(done: int) -> None:
    """1/2 (1 + cos(pi clip((e - 20) / (T - 20), 0, 1))) min(1, e / 20), spec foundation_x.md."""
    falling = math.cos(math.pi * min(max((done - 20) / (3000 - 20), 0), 1))
    expected = 0.5 * (1 + falling) * min(1, done / 20)
    assert CountedWarmup(20, first=1)(done - 1, 3000) == pytest.approx(expected)


def test_arks_rate_by_rounds() -> None:
    """0.3 after 20 rounds from 1e-6, then a cosine to 1e-5 (spec ark.md, optimiser)."""
    rate = [0.3 * CountedWarmup(20, 1e-6 / 0.3, 1e-5 / 0.3)(k, 200) for k in range(201)]
    assert (rate[0], rate[20], rate[200]) == pytest.approx((1e-6, 0.3, 1e-5))
    assert rate[10] == pytest.approx((1e-6 + 0.3) / 2)
    assert rate[110] == pytest.approx((0.3 + 1e-5) / 2)


def test_a_ramp_waits_and_rises() -> None:
    ramp = Ramp(Constant(0.5), warmup=0.2, delay=0.1)
    assert [ramp(step, 100) for step in (0, 9, 10, 20, 30, 100)] == pytest.approx(
        [0, 0, 0, 0.25, 0.5, 0.5]
    )
    assert Ramp(Constant(0.5), warmup=0, delay=0.1)(10, 100) == 0.5


def test_the_first_step_is_its_own() -> None:
    found = [FirstStep(9.0, Linear(1.0, 0.0))(step, 4) for step in range(5)]
    assert found == [9.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: WarmupCosine(3),
        lambda: CountedWarmup(-3),
        lambda: Ramp(Constant(1.0), warmup=1.5),
        lambda: Ramp(Constant(1.0), delay=-0.1),
    ],
)
def test_impossible_numbers_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="expected a"):
        make()
