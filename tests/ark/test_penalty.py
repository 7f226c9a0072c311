from __future__ import annotations

import pytest
import torch

from ark.network import Network
from ark.penalty import NormPenalty
from ark.types import ConfigError
from toys import SIZE, make_task


@pytest.fixture
def network() -> Network:
    tasks = [make_task("multilabel"), make_task("segmentation")]
    return Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)


def test_the_price_is_the_sum_of_norms_in_the_tasks_that_use_the_part(network: Network) -> None:
    penalty = NormPenalty(network, {"projector": 0.5, "backbone": 2.0})
    norms = {
        name: sum(float((p.detach().double() ** 2).sum()) ** 0.5 for p in part.parameters())
        for name, part in (("projector", network.projector), ("backbone", network.backbone))
    }
    both = 0.5 * norms["projector"] + 2 * norms["backbone"]
    assert float(penalty("toy/multilabel")) == pytest.approx(both, rel=1e-5)
    assert float(penalty("toy/segmentation")) == pytest.approx(2 * norms["backbone"], rel=1e-5)


def test_its_gradient_is_the_weights_direction(network: Network) -> None:
    NormPenalty(network, {"projector": 0.5})("toy/multilabel").backward()
    weight = network.projector.weight
    torch.testing.assert_close(weight.grad, 0.5 * weight.detach() / weight.detach().norm())


def test_what_is_locked_or_not_priced_costs_nothing(network: Network) -> None:
    penalty = NormPenalty(network, {"projector": 0.5})
    assert penalty("toy/segmentation") is None
    network.projector.requires_grad_(False)
    assert penalty("toy/multilabel") is None


def test_a_path_that_is_not_there_is_an_error(network: Network) -> None:
    with pytest.raises(ConfigError, match=r"norm_penalty: 'encoder' names no module.*backbone"):
        NormPenalty(network, {"encoder": 1.0})
