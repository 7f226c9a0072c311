"""Files of `ark pt2`, read again by torch without Ark's classes."""

import json
import logging

import pytest
import torch

from ark.checkpoint import save_networks
from ark.errors import ConfigError
from ark.exporting.pt2_file import pt2
from ark.network import Network
from ark.types import TaskSpec
from toys import CLASSES, HEADS

SIDE = 64
TASKS = [
    TaskSpec("toy", kind, kind, CLASSES, {"class_path": HEADS[kind]})
    for kind in ("multilabel", "values", "segmentation")
]
OUTPUTS = ["pooled", "embedding", "toy/multilabel", "toy/values", "toy/segmentation"]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters warn of their own future


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    made = Network({"name": "test_efficientnet", "image_size": SIDE}, None, TASKS).eval()
    save_networks(tmp_path / "run" / "model", teacher=made)
    return made


def assert_same(network, run):
    for batch, channels in ((1, 1), (1, 3), (3, 3)):
        images = torch.randint(0, 256, (batch, channels, SIDE, SIDE), dtype=torch.uint8)
        found = dict(zip(OUTPUTS, run(images), strict=True))
        expected = network(images)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(
            found["toy/multilabel"], expected["toy/multilabel"].probabilities, **close
        )
        torch.testing.assert_close(
            found["toy/segmentation"], expected["toy/segmentation"].probabilities, **close
        )
        torch.testing.assert_close(found["toy/values"], expected["toy/values"].values, **close)


def test_torch_export_reads_it(tmp_path, network, caplog):
    with caplog.at_level(logging.INFO, logger="ark"):
        pt2(str(tmp_path / "run"), str(tmp_path / "model.pt2"))
    extra = {"ark.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    said = {name: json.loads(text) for name, text in json.loads(extra["ark.json"]).items()}
    assert said["ark.outputs"] == OUTPUTS
    assert said["ark.tasks"]["toy/multilabel"]["classes"] == list(CLASSES)
    assert_same(network, program.module())
    assert "toy/segmentation" in caplog.text
    assert "differs from torch by" in caplog.text
    with pytest.raises(ConfigError, match=r"--overwrite=true"):
        pt2(str(tmp_path / "run"), str(tmp_path / "model.pt2"))


@pytest.mark.slow
def test_aotinductor_runs_it(tmp_path, network):
    path = tmp_path / "model.pt2"
    pt2(str(tmp_path / "run"), str(path), compile=True)
    assert_same(network, torch._inductor.aoti_load_package(str(path)))
    said = json.loads((tmp_path / "model.pt2.json").read_text())
    assert json.loads(said["ark.outputs"]) == OUTPUTS


def test_a_missing_compiler_is_said(tmp_path, network, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"C\+\+ compiler.*no-such-compiler.*CXX"):
        pt2(str(tmp_path / "run"), str(tmp_path / "model.pt2"), compile=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
