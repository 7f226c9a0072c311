"""Encoders by others' names give the features that their own libraries compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

import ark
from ark.backbone import Backbone
from ark.importing.command import import_model
from ark.importing.encoders import to_timm
from ark.importing.record import Record
from ark.importing.variants import CONVNEXTS, RESNETS, SWINS, VITS, find_variant
from ark.types import ConfigError
from ark.weights import load_initial


def stirred(model: nn.Module) -> nn.Module:
    """In eval mode, with no tensor left at zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.1 * noise if tensor.ndim < 2 else 0.02 * noise)
                if tensor.ndim < 2:
                    tensor.abs_()
    return model.eval()


def imported(folder: Path, state: Any, **options: Any) -> Any:
    torch.save(state, folder / "file.pth")
    import_model("encoder", str(folder / "file.pth"), str(folder / "model"), **options)
    return ark.load(folder / "model")


def features(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.features(pixels).pooled


def normalised(model: Any, pixels: Tensor) -> Tensor:
    return (pixels - model.network.backbone.mean) / model.network.backbone.std


def vision(name: str) -> tuple[nn.Module, int, dict[str, Any]]:
    """A small torchvision model, its input's side, and what shapes cannot say."""
    if name == "resnet18":
        return tv.resnet18(), 64, {}
    if name == "vit":
        vit = tv.VisionTransformer(64, 16, 5, 2, 128, 512)
        return vit, 64, {"backbone_args": {"num_heads": 2}}
    if name == "convnext":
        setting = [
            tv.convnext.CNBlockConfig(w, w2, d)
            for w, w2, d in ((8, 16, 1), (16, 32, 1), (32, 64, 2), (64, None, 1))
        ]
        return tv.ConvNeXt(setting), 64, {}
    swin = tv.SwinTransformer([4, 4], 16, [2, 2, 2], [1, 2, 4], [4, 4])
    return swin, 64, {}


@pytest.mark.parametrize("name", ["resnet18", "vit", "convnext", "swin"])
def test_torchvisions_names_give_torchvisions_features(tmp_path: Path, name: str) -> None:
    theirs, side, options = vision(name)
    theirs = stirred(theirs)
    model = imported(tmp_path, theirs.state_dict(), image_size=side, **options)
    pixels = torch.rand(2, 3, side, side)
    head = {"resnet18": "fc", "vit": "heads", "convnext": "classifier.2", "swin": "head"}[name]
    parent, _, last = head.rpartition(".")
    setattr(theirs.get_submodule(parent), last, nn.Identity())
    with torch.no_grad():
        expected = theirs(normalised(model, pixels))
    torch.testing.assert_close(features(model, pixels), expected, atol=1e-5, rtol=1e-4)
    said = model.facts.code["import"]
    assert list(said["dropped"])[-1] == "the classifier of another data set"
    assert model.facts.parts == "backbone"
    assert timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True) is not None


def dinov2_of_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names as transformers' Dinov2Model has them; query, key and value apart."""
    found = {"embeddings.mask_token": torch.zeros(1, 64)}
    for name, tensor in state.items():
        name = name.replace("blocks.", "encoder.layer.").replace(
            "attn.proj", "attention.output.dense"
        )
        name = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", name)
        name = re.sub("^cls_token|^patch_embed.proj", lambda m: _EMBEDDINGS[m[0]], name)
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = re.sub("^norm", "layernorm", name)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            found[name] = tensor
    return found


_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
}


def small_vit(**args: Any) -> nn.Module:
    shape = {"embed_dim": 64, "depth": 5, "num_heads": 1, "num_classes": 0}
    return stirred(timm.create_model("vit_base_patch14_dinov2", **{**shape, **args}))


def test_transformers_dinov2_gives_the_same_features(tmp_path: Path) -> None:
    theirs = small_vit(img_size=70)
    state = dinov2_of_transformers(theirs.state_dict())
    assert "encoder.layer.1.layer_scale2.lambda1" in state
    grays = {"mean": [0.5307] * 3, "std": [0.2583] * 3}  # RAD-DINO's
    model = imported(tmp_path, state, **grays)
    assert model.image_size == 70
    pixels = torch.rand(2, 3, 70, 70)
    with torch.no_grad():
        expected = theirs((pixels - 0.5307) / 0.2583)
    torch.testing.assert_close(features(model, pixels), expected, atol=1e-5, rtol=1e-4)
    assert "of the pretext task" in next(iter(model.facts.code["import"]["dropped"]))


def test_dino_and_mae_files_give_their_encoder(tmp_path: Path) -> None:
    vit = stirred(timm.create_model("vit_base_patch16_224", embed_dim=64, depth=5, num_heads=1))
    whole = vit.state_dict()
    inner = {k: v for k, v in whole.items() if not k.startswith("head.")}
    dino = {f"module.backbone.{k}": v for k, v in inner.items()}
    dino["module.head.mlp.0.weight"] = torch.zeros(3)
    mae = {**inner, "mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(4, 64)}
    files: list[dict[str, Any]] = [{"student": {}, "teacher": dino}, {"model": mae}, whole]
    expected = vit.forward_features(torch.zeros(1, 3, 224, 224))[:, 0]
    for number, content in enumerate(files):
        model = imported(tmp_path, content, overwrite=True)
        # timm's ViT of this shape is normalised otherwise than DINO and MAE
        assert model.facts.mean[0] == pytest.approx([0.485, 0.485, 0.5][number])
        pixels = model.network.backbone.mean.expand(1, 3, 224, 224)
        torch.testing.assert_close(features(model, pixels), expected, atol=1e-5, rtol=1e-4)


def test_papers_files_start_a_run_by_model_backbone_weights(tmp_path: Path) -> None:
    args = {"embed_dim": 16, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
    name, path = "swin_base_patch4_window7_224", str(tmp_path / "f.pth.tar")
    for content, prefix in (
        (foreign.ark_plus_file()["teacher"], "module."),
        (foreign.foundation_file(), "backbone.0."),
    ):
        torch.save(content, path)
        backbone = Backbone(name, foreign.SIDE, args)
        said = load_initial(backbone, name, path)
        state = content.get("teacher_model", content)
        key = "layers.{}.downsample.reduction.weight"
        assert torch.equal(
            backbone.model.state_dict()[key.format(3)], state[prefix + key.format(2)]
        )
        assert ("always_partition" in said) == (prefix == "backbone.0.")
    model = imported(tmp_path, content, image_size=foreign.SIDE)  # of the last, the backbone alone
    assert model.facts.parts == "backbone"
    assert model.network.architecture["backbone"]["args"]["always_partition"]


def test_a_vits_places_are_resampled_where_a_run_has_another_size(tmp_path: Path) -> None:
    vit = small_vit(img_size=70)
    torch.save(vit.state_dict(), tmp_path / "f.pth")
    args = {"embed_dim": 64, "depth": 5, "num_heads": 1}
    backbone = Backbone("vit_base_patch14_dinov2", 98, args)
    load_initial(backbone, "vit", str(tmp_path / "f.pth"))
    assert backbone.model.pos_embed.shape == (1, 50, 64)
    with pytest.raises(ConfigError, match="no family that shapes tell"):
        imported(tmp_path, {"some.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "args", "found"),
    [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, "vit_small_patch14_reg4_dinov2"),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg"}, "vit_tiny_patch16_224"),
    ],
)
def test_registers_and_the_mean_of_patches_are_seen(
    tmp_path: Path, name: str, args: dict[str, Any], found: str
) -> None:
    theirs = stirred(timm.create_model(name, num_classes=3, **args))
    model = imported(tmp_path, theirs.state_dict())
    backbone = model.network.architecture["backbone"]
    assert (backbone["name"], backbone["image_size"]) == (found, args["img_size"])
    pixels = torch.rand(2, 3, args["img_size"], args["img_size"])
    with torch.no_grad():
        maps = theirs.forward_features(normalised(model, pixels))
        expected = theirs.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(features(model, pixels), expected, atol=1e-5, rtol=1e-4)


def test_places_of_registers_are_resampled_alone(tmp_path: Path) -> None:
    args = {"embed_dim": 64, "depth": 5, "num_heads": 1}
    name = "vit_small_patch14_reg4_dinov2"  # its class and register tokens have no place
    theirs = timm.create_model(name, img_size=70, num_classes=0, **args)
    torch.save(theirs.state_dict(), tmp_path / "f.pth")
    backbone = Backbone(name, 98, args)
    load_initial(backbone, name, str(tmp_path / "f.pth"))
    assert backbone.model.pos_embed.shape == (1, 49, 64)


def test_a_named_vit_is_read_at_the_files_own_size(tmp_path: Path) -> None:
    theirs = stirred(timm.create_model("vit_tiny_patch16_384", img_size=96, num_classes=0))
    model = imported(tmp_path, theirs.state_dict(), backbone="vit_tiny_patch16_384")
    assert model.image_size == 96
    assert not any("resampled" in note for note in model.facts.code["import"]["notes"])


def test_what_shapes_do_not_tell_is_an_error_that_says_so(tmp_path: Path) -> None:
    deit = timm.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(ConfigError, match=r"198 places, expected a square.*distilled.*--backbone"):
        imported(tmp_path, deit.state_dict())
    imported(tmp_path, deit.state_dict(), backbone="deit_tiny_distilled_patch16_224")
    with pytest.raises(ConfigError, match=r"--last_shift=keep is about Swin's windows"):
        imported(tmp_path, tv.resnet18().state_dict(), last_shift="keep", overwrite=True)
    with pytest.raises(ConfigError, match=r"not 64 wide, as of a wide ResNet.*--backbone"):
        imported(tmp_path, tv.wide_resnet50_2().state_dict(), overwrite=True)


NAMES = sorted({*SWINS.values(), *CONVNEXTS.values(), *RESNETS.values(), *VITS.values()})


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_variant_is_found_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert find_variant(to_timm(state, Record()))["name"] == name
    assert find_variant(state, 768)["image_size"] == 768
