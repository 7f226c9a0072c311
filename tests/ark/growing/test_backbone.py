"""The backbone at the same and at another image size."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import pytest
import timm
import torch
import yaml

from ark.growing import grow
from ark.growing.source import Source
from ark.network import Network
from ark.types import ConfigError
from toys import make_task

TASKS = [make_task("multilabel")]
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


def network(seed: int, name: str, size: int, args: Any = None) -> Network:
    torch.manual_seed(seed)
    return Network({"name": name, "image_size": size, "args": args}, None, TASKS)


def source(old: Network, **facts: Any) -> Source:
    return Source("there", "teacher", old.architecture, old.state_dict(), **facts)


@pytest.mark.parametrize(
    ("name", "args", "resized"),
    [("test_vit", None, "pos_embed"), ("swin_tiny_patch4_window7_224", SWIN, "relative_position")],
)
def test_another_size_is_resized_as_timm_does(name: str, args: Any, resized: str) -> None:
    old, new = network(1, name, 224, args), network(2, name, 160, args)
    for value in old.state_dict().values():
        value.copy_(torch.rand_like(value)) if value.is_floating_point() else None
    growth = grow(new, source(old), {})
    # timm's own way to bring the same weights to that size
    options = {"num_classes": 0, "img_size": 160, **(args or {})}
    theirs = timm.create_model(name, **options)
    filtered = sys.modules[type(theirs).__module__].checkpoint_filter_fn(
        old.backbone.model.state_dict(), theirs
    )
    theirs.load_state_dict(filtered)
    mine = new.backbone.model.state_dict()
    before = old.backbone.model.state_dict()
    assert mine.keys() == theirs.state_dict().keys()
    assert all(torch.equal(mine[k], v) for k, v in theirs.state_dict().items())
    other = [k for k in mine if mine[k].shape != before[k].shape]
    assert other
    assert all(resized in k for k in other)
    row = growth.rows[0]
    assert (row.taken, row.resized) == (len(mine) - len(other), len(other))
    assert row.note == "224 px there, 160 here"
    new.eval()(torch.rand(1, 3, 160, 160))


def test_a_network_of_convolutions_takes_any_size() -> None:
    old, new = network(1, "test_efficientnet", 64), network(2, "test_efficientnet", 96)
    assert grow(new, source(old), {}).rows[0].resized == 0
    for name, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[name])


def test_what_timm_does_not_resize_is_refused() -> None:
    name = "mixer_s32_224"
    old, new = network(1, name, 224), network(2, name, 160)
    with pytest.raises(ConfigError, match=r"timm does not resize it; set --data.image_size=224"):
        grow(new, source(old), {})


def test_another_backbone_is_refused_by_both_names() -> None:
    old, new = network(1, "test_vit", 160), network(2, "test_efficientnet", 160)
    with pytest.raises(ConfigError, match=r"has the backbone 'test_vit', but model.backbone.name"):
        grow(new, source(old), {})


def test_another_width_of_the_same_backbone_is_refused() -> None:
    name = "swin_tiny_patch4_window7_224"
    old, new = network(1, name, 224, SWIN), network(2, name, 224, {**SWIN, "embed_dim": 32})
    with pytest.raises(ConfigError, match=r"equal model.backbone.args"):
        grow(new, source(old), {})


def test_another_normalisation_of_images_is_refused_with_its_cure() -> None:
    old, new = (network(seed, "test_efficientnet", 64) for seed in (1, 2))
    mean = [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match=r"pretrained_cfg_overlay: \{mean: \[0.1, 0.2, 0.3\]\}"):
        grow(new, source(old, mean=mean), {})
    cured = network(2, "test_efficientnet", 64, {"pretrained_cfg_overlay": {"mean": mean}})
    grow(cured, source(old, mean=mean), {})
    with pytest.raises(ConfigError, match=r"normalises images with mean \[0.1, 0.2, 0.3\]"):
        grow(new, source(cured), {})  # a run's own weights, which do not say it
    with pytest.raises(ConfigError, match=r"this run's backbone with \[0.1, 0.2, 0.3\]"):
        grow(cured, source(old), {})


@pytest.mark.parametrize(
    ("name", "args", "what"),
    [
        ("swin_tiny_patch4_window7_224", {**SWIN, "always_partition": True}, "always_partition"),
        ("test_vit", {"num_heads": 4}, "num_heads"),
    ],
)
def test_the_same_tensors_with_another_meaning_are_refused(name: str, args: Any, what: str) -> None:
    """All names and shapes fit; the features would be others."""
    usual = {key: value for key, value in args.items() if key != what}
    old, new = network(1, name, 224, args), network(2, name, 224, usual)
    with pytest.raises(ConfigError) as error:
        grow(new, source(old), {})
    assert f"model.backbone.args.{what} is {args[what]} in there, not set here" in str(error.value)
    assert "--data.image_size=224" in str(error.value)
    with pytest.raises(ConfigError, match=rf"{what} is not set in there, {args[what]} here"):
        grow(old, source(new), {})
    grow(network(3, name, 224, {**args, "drop_path_rate": 0.1}), source(old), {})


def test_another_pooling_is_a_choice_and_said() -> None:
    old = network(1, "test_efficientnet", 64)
    new = network(2, "test_efficientnet", 64, {"global_pool": "max"})
    assert grow(new, source(old), {}).rows[0].note == "global_pool not set there, max here"


def test_the_cure_of_another_architecture_can_be_pasted() -> None:
    old, new = network(1, "swin_tiny_patch4_window7_224", 224, SWIN), network(2, "test_vit", 160)
    with pytest.raises(ConfigError) as error:
        grow(new, source(old), {})
    said = shlex.split(str(error.value).partition("; set ")[2])
    found = dict(option.removeprefix("--").split("=", 1) for option in said)
    assert found["model.backbone.name"] == "swin_tiny_patch4_window7_224"
    assert yaml.safe_load(found["model.backbone.args"]) == SWIN
    assert found["data.image_size"] == "224"


def test_another_projector_says_which_one_is_there() -> None:
    backbone = {"name": "test_efficientnet", "image_size": 64, "args": None}
    old = Network(backbone, {"width": 8, "hidden": True}, TASKS)
    for mine, start in ((None, "dropped"), ({"width": 4, "hidden": True}, "new")):
        row = grow(Network(backbone, mine, TASKS), source(old), {}).rows[1]
        assert (row.part, row.state) == ("projector", start)
        assert row.note.endswith("; model.projector is {width: 8, hidden: true} there")
