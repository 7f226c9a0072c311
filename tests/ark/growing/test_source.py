"""Where weights may come from, and what is refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ark.checkpoint import save_networks
from ark.growing import InitConfig, grow, load_source
from ark.network import Network
from ark.published.config import Facts
from ark.published.writing import write_model
from ark.types import ConfigError
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
    with pytest.raises(ConfigError, match=r"init_from: .*no config.json"):
        load_source(str(tmp_path))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match=r"init_from: .*foreign.ckpt"):
        load_source(str(path))


def test_names_want_a_source_and_a_task_of_this_run() -> None:
    with pytest.raises(ConfigError, match="no init_from says whose"):
        InitConfig(names={"a/b": "c/d"}).check(["a/b"])
    with pytest.raises(ConfigError, match=r"'a/x' \(before the colon\) is no task of this run"):
        InitConfig("run", {"a/x": "c/d"}).check(["a/b"])
    InitConfig("run", {"a/b": "c/d"}).check(["a/b"])
