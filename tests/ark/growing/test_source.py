"""Where weights may come from, and what is refused with one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import pytest
import timm
import torch

from ark.checkpoint import save_networks
from ark.growing import InitConfig, grow, load_source
from ark.importing.command import import_model
from ark.network import Network
from ark.published.config import Facts
from ark.published.writing import write_model
from ark.types import ConfigError, TaskSpec
from toys import SIZE, make_task


@pytest.fixture
def network() -> Network:
    backbone = {"name": "test_efficientnet", "image_size": SIZE, "args": None}
    return Network(backbone, {"width": 8}, [make_task("multilabel")])


def same(found: Any, network: Network) -> bool:
    state = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())


def test_a_run_and_its_model_folder(network: Network, tmp_path: Path) -> None:
    save_networks(tmp_path / "model", teacher=network)
    for where in (tmp_path, tmp_path / "model"):
        assert same(load_source(str(where)).state, network)
    with pytest.raises(ConfigError, match=r"init_from: .*student.safetensors is missing"):
        load_source(str(tmp_path), "student")


def test_a_published_folder(network: Network, tmp_path: Path) -> None:
    write_model(tmp_path, network, Facts(network.architecture))
    found = load_source(str(tmp_path))
    assert same(found.state, network)
    assert list(found.tasks) == ["toy/multilabel"]
    assert found.mean == network.backbone.mean.flatten().tolist()
    with pytest.raises(ConfigError, match="holds the teacher alone; drop --init_which=student"):
        load_source(str(tmp_path), "student")


def test_a_published_backbone(network: Network, tmp_path: Path) -> None:
    write_model(tmp_path, network, Facts(network.architecture, parts="backbone"))
    found = load_source(str(tmp_path))
    assert found.tasks == {}
    theirs = network.backbone.model.state_dict()
    assert all(torch.equal(found.part("backbone.model")[k], v) for k, v in theirs.items())


def test_half_precision_is_taken_as_float32(network: Network, tmp_path: Path) -> None:
    write_model(tmp_path, network, Facts(network.architecture, precision="bfloat16"))
    mine = Network.from_architecture(network.architecture)
    grow(mine, load_source(str(tmp_path)), {})
    theirs = network.state_dict()
    for name, value in mine.state_dict().items():
        assert value.dtype == theirs[name].dtype
        rounded = theirs[name].bfloat16() if value.is_floating_point() else theirs[name]
        assert torch.equal(value, rounded.to(value.dtype)), name


def test_a_published_student_says_that_it_is_one(network: Network, tmp_path: Path) -> None:
    write_model(tmp_path, network, Facts(network.architecture, which="student"))
    assert load_source(str(tmp_path)).which == "student"


def test_a_file_that_was_cut_off_is_refused(network: Network, tmp_path: Path) -> None:
    write_model(tmp_path, network, Facts(network.architecture))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"init_from: .*cut off or changed"):
        load_source(str(tmp_path))


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from: .*gone/run: no such folder"):
        load_source(str(tmp_path / "gone" / "run"))
    with pytest.raises(ConfigError, match=r"init_from: gone/last.ckpt: no such file"):
        load_source("gone/last.ckpt")
    with pytest.raises(ConfigError, match=r"init_from: gone/ark6.pth.tar: no such file"):
        load_source("gone/ark6.pth.tar")  # no repository of a hub
    with pytest.raises(ConfigError, match=r"init_from: .*no config.json"):
        load_source(str(tmp_path))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match=r"init_from: .*foreign.ckpt"):
        load_source(str(path))


def run_of(args: Any, tasks: Any = (), **more: Any) -> Network:
    """A run's network on the small Swin of the foreign files."""
    backbone = {"name": "swin_base_patch4_window7_224", "image_size": foreign.SIDE, "args": args}
    return Network(backbone, more.get("projector"), tasks)


SWIN = {"embed_dim": 16, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
FILES: dict[str, tuple[Any, str]] = {
    "ark6": (lambda: foreign.ark_state(hidden=True), "teacher"),
    "ark_plus": (foreign.ark_plus_file, "teacher"),
    "foundation_x": (lambda: foreign.foundation_file(detectors=True), "teacher"),
    "foundation_x_plus": (lambda: foreign.foundation_file(plus=True, detectors=True), "teacher"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_the_papers_is_a_start_as_its_import_is(kind: Any, tmp_path: Path) -> None:
    content, which = FILES[kind]
    file = tmp_path / "file.pth.tar"
    torch.save(content(), file)
    import_model(kind, str(file), str(tmp_path / "model"))
    found, imported = load_source(str(file)), load_source(str(tmp_path / "model"))
    assert found.architecture == imported.architecture
    random = "label_embedding"  # of no file
    assert found.state.keys() == imported.state.keys()
    for name, value in found.state.items():
        assert random in name or torch.equal(value, imported.state[name]), name
    assert (found.which, found.mean) == (which, imported.mean)
    assert f"`ark import {kind}`" in found.said[0]
    assert "dropped" in found.said[1]
    task = found.tasks["nih14_full/findings"]
    mine = run_of(
        found.architecture["backbone"]["args"],
        [TaskSpec("nih14_full", "findings", "multilabel", tuple(task["classes"]), task["head"])],
        projector=found.architecture["projector"],
    )
    rows = {row.part: row.state for row in grow(mine, found, {}).rows}
    assert rows["head nih14_full/findings"] == rows["backbone"] == "taken"
    assert rows["head vindr_cxr/findings"] == "dropped"


def test_the_student_of_a_papers_file(tmp_path: Path) -> None:
    content = foreign.ark_plus_file()
    torch.save(content, tmp_path / "f.pth")
    found = load_source(str(tmp_path / "f.pth"), "student")
    assert found.which == "student"
    name = "projector.weight"
    assert torch.equal(found.state[name], content["state_dict"][f"module.{name}"])
    torch.save(foreign.ark_state(hidden=True), tmp_path / "f.pth")
    with pytest.raises(ConfigError, match="holds the teacher alone; drop `student`"):
        load_source(str(tmp_path / "f.pth"), "student")


def test_a_file_of_weights_is_the_folder_that_it_is_in(network: Network, tmp_path: Path) -> None:
    """Not an encoder with heads beside it, which would be dropped."""
    save_networks(tmp_path / "model", teacher=network)
    write_model(tmp_path / "published", network, Facts(network.architecture))
    for file in ("model/teacher.safetensors", "published/model.safetensors"):
        found = load_source(str(tmp_path / file))
        assert same(found.state, network)
        assert list(found.tasks) == ["toy/multilabel"]


def test_an_encoders_file_is_read_as_the_runs_backbone(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_384", img_size=96, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "f.pth")
    backbone = {"name": "vit_tiny_patch16_384", "image_size": 64, "args": None}
    mine = Network(backbone, None, [make_task("multilabel")])
    source = load_source(str(tmp_path / "f.pth"), backbone=backbone)
    row = grow(mine, source, {}).rows[0]
    assert (row.resized, row.note) == (1, "96 px there, 64 here")
    assert torch.equal(mine.backbone.model.cls_token, theirs.cls_token)
    other = {"name": "test_efficientnet", "image_size": 64, "args": None}
    source = load_source(str(tmp_path / "f.pth"), backbone=other)
    with pytest.raises(ConfigError, match=r"set --model\.backbone\.name=vit_tiny_patch16_224"):
        grow(Network(other, None, []), source, {})


def test_an_encoder_that_only_the_run_can_name(tmp_path: Path) -> None:
    theirs = timm.create_model("test_efficientnet", num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "f.pth")
    backbone = {"name": "test_efficientnet", "image_size": 64, "args": None}
    mine = Network(backbone, None, [])
    grow(mine, load_source(str(tmp_path / "f.pth"), backbone=backbone), {})
    assert torch.equal(mine.backbone.model.conv_stem.weight, theirs.conv_stem.weight)
    other = {"name": "resnet18", "image_size": 64, "args": None}
    with pytest.raises(ConfigError, match=r"init_from: .*f\.pth does not fit .*no place, such as"):
        load_source(str(tmp_path / "f.pth"), backbone=other)


def test_a_start_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    torch.save({"teacher": foreign.ark_state(hidden=True), "epoch": Harm()}, tmp_path / "f.pth")
    with pytest.raises(ConfigError, match=r"init_from: .*asks for 'posix\.system'.*refused"):
        load_source(str(tmp_path / "f.pth"))
    assert not (tmp_path / "mark").exists()


def test_a_folder_of_shards_says_where_to_start(tmp_path: Path) -> None:
    (tmp_path / ".metadata").touch()
    with pytest.raises(ConfigError, match=r"is a checkpoint of shards .* run's folder"):
        load_source(str(tmp_path))


def test_names_want_a_source_and_a_task_of_this_run() -> None:
    with pytest.raises(ConfigError, match="no init_from says whose"):
        InitConfig(names={"a/b": "c/d"}).check(["a/b"])
    with pytest.raises(ConfigError, match=r"'a/x' \(before the colon\) is no task of this run"):
        InitConfig("run", {"a/x": "c/d"}).check(["a/b"])
    InitConfig("run", {"a/b": "c/d"}).check(["a/b"])
