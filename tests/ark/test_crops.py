"""Ten crops against slices written out."""

from __future__ import annotations

import pytest
import torch

from ark.crops import mean_of_ten_crops
from ark.network import Network
from ark.types import ClassPrediction, ConfigError
from toys import make_task


def by_position(crops: torch.Tensor) -> ClassPrediction:
    """A "network" that tells places and mirror images apart, and not linearly."""
    weights = torch.linspace(0.1, 1, crops[0].numel()).view(crops.shape[1:])
    seen = (crops.float() * weights).sum(dim=(1, 2, 3)) / 9000
    return ClassPrediction(torch.stack([seen.sigmoid(), seen.sin() ** 2], dim=1))


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 13), (9, 9), (8, 8), (10, 15)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_over_corners_middle_and_mirror_images(height, width, channels) -> None:
    size = 8
    images = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8)
    down, across = height - size, width - size
    places = [(0, 0), (0, across), (down, 0), (down, across)]
    places.append((round(down / 2), round(across / 2)))
    found = []
    for top, left in places:
        for whole in (images, images.flip(-1)):
            crop = whole[:, :, top : top + size, left : left + size]
            assert crop.shape == (3, channels, size, size)
            found.append(by_position(crop).probabilities)
    expected = torch.stack(found).mean(dim=0)
    given = mean_of_ten_crops(by_position, images, size).probabilities
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_a_network_and_gray_images() -> None:
    task = make_task("multiclass")
    network = Network({"name": "test_efficientnet", "image_size": 64}, None, [task]).eval()
    gray = torch.randint(0, 256, (2, 1, 73, 73), dtype=torch.uint8)
    sizes = []

    def predict(crops: torch.Tensor):
        sizes.append(tuple(crops.shape))
        return network.predict(task.key, crops)

    found = mean_of_ten_crops(predict, gray, 64).probabilities
    assert sizes == [(2, 1, 64, 64)] * 10
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert not torch.equal(found, network.predict(task.key, gray[..., :64, :64]).probabilities)
    alone = mean_of_ten_crops(predict, gray[:1], 64).probabilities
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=1e-5)


def test_certainty_stays_a_probability() -> None:
    def sure(crops: torch.Tensor) -> ClassPrediction:
        return ClassPrediction(torch.full((len(crops), 2), 1.0).sub(1e-8))

    found = mean_of_ten_crops(sure, torch.zeros(1, 3, 9, 9), 8).probabilities
    assert (found <= 1).all()


def test_images_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match=r"images of \(9, 7\) pixels are smaller than .* of 8"):
        mean_of_ten_crops(by_position, torch.zeros(1, 3, 9, 7), 8)
