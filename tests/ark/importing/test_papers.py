from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import pytest
import timm
import torch
import yaml
from plain_swin import plain_swin

import ark
from ark.importing import tasks
from ark.importing.command import import_model
from ark.types import ConfigError

SHAPE = (foreign.DEPTHS, foreign.HEADS, foreign.WINDOW)
CONFIGS = Path(__file__).parents[3] / "configs"


def imported(folder: Path, kind: Any, content: Any, **options: Any) -> Any:
    """The model that comes of a file with this content."""
    torch.save(content, folder / "file.pth.tar")
    import_model(kind, str(folder / "file.pth.tar"), str(folder / "model"), **options)
    return ark.load(folder / "model")


def images() -> torch.Tensor:
    side = foreign.SIDE
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def normalised(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - model.network.backbone.mean) / model.network.backbone.std


@pytest.mark.parametrize("old", [True, False])
def test_ark6_gives_the_papers_features_and_scores(tmp_path: Path, old: bool) -> None:
    model = imported(tmp_path, "ark6", foreign.ark_state(hidden=True, old=old))
    state = foreign.ark_state(hidden=True)
    if not old:  # the same numbers under the new names: made in another order
        state = {**state, **foreign.ark_state(hidden=True, old=False)}
        for n in (0, 1, 2):
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                name = f"downsample.{part}"
                new = foreign.ark_state(hidden=True, old=False)[f"layers.{n + 1}.{name}"]
                state[f"layers.{n}.{name}"] = new
    with torch.no_grad():
        maps, pooled = plain_swin(state, normalised(model, images()), *SHAPE, keep_shift=False)
        found = model.features(images())
        hidden = pooled @ state["projector.0.weight"].T + state["projector.0.bias"]
        embedding = hidden.relu() @ state["projector.2.weight"].T + state["projector.2.bias"]
        scores = embedding @ state["omni_heads.4.weight"].T + state["omni_heads.4.bias"]
        vindr = model(images())["vindr_cxr/findings"]
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.embedding, embedding, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(found.maps, maps, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert list(vindr) == list(tasks.CLASSES["vindr_cxr/findings"])
    torch.testing.assert_close(torch.stack(list(vindr.values()), 1), scores.sigmoid())
    assert model.network.architecture["tasks"][3]["head"]["init_args"] == {"loss": "bce"}


def test_ark_plus_gives_the_teacher_or_the_student(tmp_path: Path) -> None:
    content = foreign.ark_plus_file()
    for which, place in (("teacher", "teacher"), ("student", "state_dict")):
        model = imported(tmp_path, "ark_plus", content, which=which, overwrite=True)
        state = {k.removeprefix("module."): v for k, v in content[place].items()}
        head = model.network.heads["mimic_cxr/findings"].linear
        assert torch.equal(head.weight, state["omni_heads.0.weight"])
        assert torch.equal(model.network.projector.weight, state["projector.weight"])
        assert model.facts.code["import"]["part"] == place
        assert model.facts.which == which
        with torch.no_grad():
            expected = plain_swin(state, normalised(model, images()), *SHAPE, keep_shift=False)[1]
            found = model.features(images()).pooled
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shift", "keep"), [("origin", True), ("keep", True), ("off", False)])
def test_foundation_x_keeps_the_last_stages_shift(tmp_path: Path, shift: str, keep: bool) -> None:
    content = foreign.foundation_file()
    model = imported(tmp_path, "foundation_x", content, image_size=foreign.SIDE, last_shift=shift)
    prefix = "backbone.0."
    state = {k.removeprefix(prefix): v for k, v in content["teacher_model"].items()}
    with torch.no_grad():
        maps, pooled = plain_swin(state, normalised(model, images()), *SHAPE, keep_shift=keep)
        other = plain_swin(state, normalised(model, images()), *SHAPE, keep_shift=not keep)[1]
        found = model.features(images())
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.maps[-1], maps[-1], atol=1e-5, rtol=1e-5)
    assert (other - pooled).abs().max() > 1e-2  # the trap is one
    assert model.network.architecture["backbone"]["args"].get("always_partition", False) == keep


def test_foundation_x_names_its_heads_and_says_what_it_dropped(tmp_path: Path) -> None:
    content = foreign.foundation_file()
    model = imported(tmp_path, "foundation_x", content, image_size=foreign.SIDE)
    assert list(model.tasks) == list(tasks.FOUNDATION)
    for number, key in enumerate(tasks.FOUNDATION):
        expected = content["teacher_model"][f"backbone.0.classification_heads.{number}.weight"]
        assert torch.equal(model.network.heads[key].linear.weight, expected)
    said = model.facts.code["import"]
    total = said["used"] + sum(group["count"] for group in said["dropped"].values())
    assert total == len(content["teacher_model"])
    assert any("segmentation" in why for why in said["dropped"])
    assert any("shifted and masked" in note for note in said["notes"])


def test_a_head_of_another_width_names_the_fix(tmp_path: Path) -> None:
    state = foreign.ark_state(hidden=False)
    state["omni_heads.0.weight"] = torch.zeros(5, 24)
    with pytest.raises(ConfigError, match=r"5 outputs, but mimic_cxr/findings has 14.*--heads"):
        imported(tmp_path, "ark_plus", state)
    assert not (tmp_path / "model").exists()
    with pytest.raises(ConfigError, match=r"6 datasets are named|2 datasets are named"):
        imported(tmp_path, "ark_plus", state, heads=["a/b", "c/d"])
    state["omni_heads.0.bias"] = torch.zeros(5)
    names = ["mine/covid", "chexpert/findings", "-", *tasks.ARK[3:]]
    classes = {"mine/covid": ["a", "b", "c", "d", "e"]}
    model = imported(tmp_path, "ark_plus", state, heads=names, classes=classes)
    assert model.tasks["mine/covid"].classes == ("a", "b", "c", "d", "e")
    assert len(model.tasks) == 5


def test_a_foreign_tensor_is_an_error_unless_it_is_dropped(tmp_path: Path) -> None:
    state = {**foreign.ark_state(hidden=False), "extra.weight": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"no place.*extra\.weight.*--drop"):
        imported(tmp_path, "ark_plus", state)
    model = imported(tmp_path, "ark_plus", state, drop=["extra."])
    assert "left out by --drop" in model.facts.code["import"]["dropped"]
    del state["layers.2.blocks.1.mlp.fc2.bias"]
    with pytest.raises(ConfigError, match=r"layers\.2\.blocks\.1\.mlp\.fc2\.bias is missing"):
        imported(tmp_path, "ark_plus", state, drop=["extra."], overwrite=True)


def test_a_file_of_others_than_was_said_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a file of ark_plus, not foundation_x; say ark_plus"):
        imported(tmp_path, "foundation_x", foreign.ark_plus_file())
    with pytest.raises(ConfigError, match=r"a file of foundation_x, not ark6; say foundation_x"):
        imported(tmp_path, "ark6", foreign.foundation_file())
    model = imported(tmp_path, "ark6", foreign.ark_plus_file())
    said = model.facts.code["import"]["notes"][0]
    assert said.startswith("by its tensors' names the file is of ark_plus, but is imported as ark6")
    assert "a sigmoid" in said


def test_a_file_that_is_not_whole_says_what_it_lacks(tmp_path: Path) -> None:
    whole = foreign.ark_state(hidden=False)

    def less(*names: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in whole.items() if not name.startswith(names)}

    with pytest.raises(ConfigError, match=r"omni_heads\.2\.bias is missing, of the head of nih14"):
        imported(tmp_path, "ark_plus", less("omni_heads.2.bias"))
    names = [*tasks.ARK[:2], "-", *tasks.ARK[3:]]
    model = imported(tmp_path, "ark_plus", less("omni_heads.2.bias"), heads=names)
    said = model.facts.code["import"]
    assert said["used"] + sum(g["count"] for g in said["dropped"].values()) == len(whole) - 1
    with pytest.raises(ConfigError, match=r"it has no patch_embed\.proj\.weight"):
        imported(tmp_path, "ark_plus", less("patch_embed.proj"), overwrite=True)
    with pytest.raises(ConfigError, match=r"the file has no heads; .*`ark import encoder`"):
        imported(tmp_path, "ark_plus", less("omni_heads"), overwrite=True)
    imported(tmp_path, "ark_plus", less("omni_heads"), heads=[], overwrite=True)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("ark_plus", {"classes": {"nihh/findings": ["a"]}}, r"'nihh/findings' is no task of the"),
        ("ark_plus", {"drop": ["head.", "omnihead"]}, r"no tensor begins with 'omnihead'; they"),
        ("ark_plus", {"mean": [123.7, 116.3, 103.5]}, r"expected .* of pixels in 0\.\.1"),
        ("ark_plus", {"std": [0.2, 0.2, 0]}, "expected none to be 0"),
        (
            "ark_plus",
            {"first_class": 1},
            "=1 says nothing of a file of kind ark_plus",
        ),
        ("foundation_x", {"first_class": -1}, "expected a number from 0 on"),
        ("encoder", {"heads": ["a/b"]}, "says nothing of a file of kind encoder; drop it"),
    ],
)
def test_an_option_that_cannot_act_is_an_error(
    tmp_path: Path, kind: str, options: dict[str, Any], said: str
) -> None:
    content = foreign.foundation_file() if kind == "foundation_x" else foreign.ark_plus_file()
    with pytest.raises(ConfigError, match=said):
        imported(tmp_path, kind, content, **options)


def test_two_files_are_not_a_file_and_a_folder(tmp_path: Path) -> None:
    torch.save(foreign.ark_plus_file(), tmp_path / "f.pth")
    with pytest.raises(ConfigError, match=r"f\.pth: is a file; expected a new folder"):
        import_model("ark_plus", str(tmp_path / "f.pth"), str(tmp_path / "f.pth"), overwrite=True)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    state = foreign.ark_state(hidden=False)
    state["layers.1.blocks.0.mlp.fc1.weight"][3, 2] = float("nan")
    with pytest.raises(ConfigError, match=r"layers\.1\.blocks\.0\.mlp\.fc1\.weight holds .*NaN"):
        imported(tmp_path, "ark_plus", state)


def test_tasks_are_those_of_the_datasets_and_recipes() -> None:
    for key, classes in tasks.CLASSES.items():
        dataset, _, name = key.partition("/")
        content = yaml.safe_load((CONFIGS / f"datasets/{dataset}.yaml").read_text())
        assert content["name"] == dataset
        labels = content["source"]["init_args"]["annotations"][name]
        assert tuple(labels["classes"]) == classes, key
        task = next(t for t in content["tasks"] if t["name"] == name)
        if labels["kind"] != "detection":
            spec = tasks.classification(key)
            assert (spec.kind, list(spec.scored)) == (labels["kind"], task.get("scored", []))
    for recipe in ("ark", "ark_plus"):
        content = yaml.safe_load((CONFIGS / f"recipes/{recipe}.yaml").read_text())
        assert tuple(content["data"]["only"]) == tasks.ARK


def test_ark_plus_may_be_a_convnext(tmp_path: Path) -> None:
    theirs = timm.create_model("convnext_base", depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)).eval()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    state = {name.replace("head.fc.", "head."): tensor for name, tensor in state.items()}
    maker = foreign.Maker()
    maker.linear("projector", 64, 24)
    for number, classes in enumerate(foreign.ARK_CLASSES):
        maker.linear(f"omni_heads.{number}", 24, classes)
    state |= {f"module.{name}": tensor for name, tensor in maker.state.items()}
    model = imported(tmp_path, "ark_plus", {"teacher": state}, image_size=64)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = theirs.forward_features(normalised(model, pixels))
        expected = theirs.forward_head(maps, pre_logits=True)
        torch.testing.assert_close(model.features(pixels).pooled, expected)
    assert model.network.architecture["backbone"]["name"] == "convnext_base"


def test_the_authors_license_is_written_down_unless_another_is_given(tmp_path: Path) -> None:
    model = imported(tmp_path, "ark_plus", foreign.ark_plus_file())
    assert model.facts.license == "the authors', non-commercial"
    card = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["license_name"]) == ("other", model.facts.license)
    options = {"license": "CC-BY-4.0", "overwrite": True}
    assert imported(tmp_path, "ark_plus", foreign.ark_plus_file(), **options).facts.license == (
        "CC-BY-4.0"
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"


def test_the_command_writes_what_load_reads(tmp_path: Path) -> None:
    torch.save(foreign.ark_plus_file(), tmp_path / "Ark6_swinLarge768_ep50.pth.tar")
    command = [sys.executable, "-m", "ark", "import", "ark_plus"]
    file, folder = str(tmp_path / "Ark6_swinLarge768_ep50.pth.tar"), str(tmp_path / "model")
    done = subprocess.run([*command, file, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "layers.0.downsample" in said or "renamed" in said
    assert "are not shifted" in said
    model = ark.load(folder)
    assert list(model.tasks) == list(tasks.ARK)
    assert model.facts.code["import"]["file"] == "Ark6_swinLarge768_ep50.pth.tar"
    assert "imported into" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(ConfigError, match="holds a model"):
        import_model("ark_plus", file, folder)
