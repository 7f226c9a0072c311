from __future__ import annotations

import math

import pytest

from ark.schedules import Constant, Cosine, WarmupCosine


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
