from __future__ import annotations

import pytest
import torch
from torch import nn

from ark.network import Network
from ark.optim import check_covered, parameter_groups
from ark.types import ConfigError
from toys import make_task


def _network() -> nn.Module:
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "projector": nn.Linear(4, 4),
        }
    )


def test_groups_hold_every_parameter_once_with_rate_and_decay() -> None:
    network = _network()
    scale = {"backbone": 0.1, "backbone.1": 0.5}
    groups = parameter_groups(network, 1.0, scale, weight_decay=0.01)
    check_covered(network, torch.optim.AdamW(groups))
    found = {id(p): group for group in groups for p in group["params"]}
    expected = {
        "backbone.0.weight": (0.1, 0.01),
        "backbone.0.bias": (0.1, 0.0),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "projector.weight": (1.0, 0.01),
        "projector.bias": (1.0, 0.0),
    }
    for name, parameter in network.named_parameters():
        group = found[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == expected[name], name


def test_a_rate_for_a_part_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'encoder' names no module.*backbone.*kinds of heads"):
        parameter_groups(_network(), 1.0, {"encoder": 0.1}, 0.0)


def test_missing_and_foreign_parameters_are_found() -> None:
    network = _network()
    parameters = list(network.parameters())
    with pytest.raises(ConfigError, match=r"in no group: projector\.bias"):
        check_covered(network, torch.optim.SGD(parameters[:-1], lr=1))
    foreign = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="not the network's"):
        check_covered(network, torch.optim.SGD([*parameters, foreign], lr=1))


def test_doubled_parameters_are_found() -> None:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    optimizer.param_groups[0]["params"].append(network["projector"].bias)
    with pytest.raises(ConfigError, match=r"in several groups: projector\.bias"):
        check_covered(network, optimizer)


def test_frozen_parameters_belong_to_no_group() -> None:
    network = _network()
    network["projector"].requires_grad_(False)
    groups = parameter_groups(network, 1.0, {}, 0.0)
    check_covered(network, torch.optim.SGD(groups))


def test_layers_of_the_backbone_have_falling_rates() -> None:
    network = Network(
        {"name": "test_vit2", "image_size": 64}, {"width": 8}, [make_task("multilabel")]
    )
    groups = parameter_groups(network, 1.0, {"backbone": 0.1}, 0.05, layer_decay=0.5)
    check_covered(network, torch.optim.AdamW(groups))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    of = {name: rate[id(p)] for name, p in network.named_parameters()}
    blocks = [of[f"backbone.model.blocks.{n}.attn.qkv.weight"] for n in range(2)]
    assert blocks[0] == pytest.approx(blocks[1] / 2)
    assert of["backbone.model.patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)
    assert max(r for name, r in of.items() if name.startswith("backbone.")) == pytest.approx(0.1)
    assert of["projector.weight"] == 1.0


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_layer_decay_out_of_range_is_an_error(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"layer_decay: .* at most 1"):
        parameter_groups(_network(), 1.0, {}, 0.0, layer_decay=decay)


def test_a_kind_is_the_rate_of_its_heads_and_a_path_goes_before_it() -> None:
    tasks = [make_task("multilabel"), make_task("multilabel", "other"), make_task("multiclass")]
    network = Network({"name": "test_efficientnet", "image_size": 64}, None, tasks)
    scale = {"heads.other/multilabel": 0.5, "multilabel": 0.1}
    for order in (scale, dict(reversed(scale.items()))):
        groups = parameter_groups(network, 1.0, order, 0.0)
        check_covered(network, torch.optim.SGD(groups))
        rate = {id(p): group["lr"] for group in groups for p in group["params"]}
        found = [rate[id(head.linear.weight)] for head in network.heads_by_key().values()]
        assert found == [0.1, 0.5, 1.0]


def test_a_kind_or_a_shared_part_of_other_tasks_is_passed_over(caplog) -> None:
    """A run of some tasks keeps its recipe."""
    network = _network()
    with caplog.at_level("WARNING"):
        groups = parameter_groups(network, 1.0, {"detection": 0.1, "shared.decoder": 0.1}, 0.0)
    check_covered(network, torch.optim.SGD(groups))
    assert "shared.decoder names nothing that this run trains" in caplog.text
    assert {group["lr"] for group in groups} == {1.0}
