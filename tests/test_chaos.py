"""Struck at random moments, a run on two ranks ends as if nothing had been, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import compare

pytestmark = pytest.mark.slow


def test_struck_it_ends_the_same(tmp_path: Path) -> None:
    """`tools/chaos.py` strikes 30 times."""
    wrong, rows = compare(tmp_path, 2, cycles=2, kills=5, seed=3)
    assert not wrong
    assert sum(row[0] != "nothing" for row in rows) == 5
