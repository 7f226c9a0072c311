"""Exclusive classes: loops over pixels as the reference."""

import numpy as np
import pytest
import torch

from heads.segmentation.exclusive import majority, without_overlap


def painted(shares):
    """From the last class to the first, each takes what it claims of what is left."""
    taken, left = [0.0] * len(shares), 1.0
    for k in reversed(range(len(shares))):
        taken[k] = min(shares[k], left)
        left -= taken[k]
    return taken


@pytest.mark.parametrize("raters", [1, 2, 3])
def test_the_last_class_wins_and_nothing_is_counted_twice(raters):
    rng = np.random.default_rng(raters)
    shares = rng.integers(0, raters + 1, (2, 4, 5, 6)) / raters
    expected = np.apply_along_axis(painted, 1, shares)
    found = without_overlap(torch.tensor(shares))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.sum(dim=1).max() <= 1 + 1e-12


def test_masks_that_do_not_overlap_and_raters_who_disagree_stay():
    shares = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1)
    torch.testing.assert_close(without_overlap(shares), shares)


def test_half_of_the_raters_are_a_majority():
    shares = torch.tensor([[1.0, 0.5, 0.4], [0.5, 0.4, 1.0]]).view(2, 3, 1, 1)
    assert majority(shares).flatten(1).tolist() == [[True, True, False], [True, False, True]]
    only = majority(shares, exclusive=True).flatten(1).tolist()
    assert only == [[False, True, False], [False, False, True]]
