"""Tiles against the whole image at once."""

import pytest
import torch

from ark.sliding_window import sliding_window
from ark.types import ConfigError, MaskPrediction


def by_pixel(tiles):
    """A "network" that looks at one pixel at a time."""
    return MaskPrediction(torch.cat([tiles.mean(dim=1, keepdim=True), tiles[:, :1] ** 2], dim=1))


@pytest.mark.parametrize("size", [(96, 128), (64, 64), (101, 77), (65, 200)], ids=str)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_what_looks_at_single_pixels_gives_the_same_whole_and_in_tiles(size, overlap):
    image = torch.rand(2, 3, *size)
    found = sliding_window(by_pixel, image, tile=64, overlap=overlap).probabilities
    torch.testing.assert_close(found, by_pixel(image).probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 40), (64, 20), (30, 90)], ids=str)
def test_an_image_smaller_than_a_tile_is_padded_and_cut(size):
    seen = []

    def network(tiles):
        seen.append(tiles.shape[2:])
        return by_pixel(tiles)

    image = torch.rand(1, 3, *size)
    found = sliding_window(network, image, tile=64).probabilities
    assert set(seen) == {(64, 64)}
    torch.testing.assert_close(found, by_pixel(image).probabilities, rtol=0, atol=1e-5)


def test_bytes_become_numbers_from_0_to_1():
    image = torch.randint(0, 256, (1, 1, 70, 70), dtype=torch.uint8)
    found = sliding_window(by_pixel, image, tile=32).probabilities
    torch.testing.assert_close(found[:, :1], image / 255, rtol=0, atol=1e-5)


def test_a_tiles_middle_weighs_more_than_its_rim():
    """Each tile is sure at its middle and wrong at its rim; the seams must not show."""
    rim = torch.ones(32, 32)
    rim[:4], rim[-4:], rim[:, :4], rim[:, -4:] = 0, 0, 0, 0

    def network(tiles):
        return MaskPrediction(rim.expand(len(tiles), 1, 32, 32).clone())

    found = sliding_window(network, torch.rand(1, 1, 96, 96), tile=32, overlap=0.5).probabilities
    assert (found[..., 4:-4, 4:-4] > 0.5).all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected tile >= 1.*overlap in \[0, 1\).*but got"):
        sliding_window(by_pixel, torch.rand(1, 3, 64, 64), **{"tile": 32} | wrong)
