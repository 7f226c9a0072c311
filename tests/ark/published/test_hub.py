"""Push to a hub and load from it, through huggingface_hub's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch
from hub_server import TOKEN, Hub, hub
from published_models import make_network, pictures, publish

import ark
from ark.exporting.onnx_file import onnx
from ark.exporting.onnx_network import OnnxNetwork
from ark.published.config import CARD, CONFIG, WEIGHTS
from ark.published.model import Model
from ark.types import ConfigError


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        # the client read its environment when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def test_what_is_pushed_is_what_is_loaded(server: Hub, tmp_path: Path) -> None:
    model = ark.load(publish(tmp_path / "model", make_network("multilabel", "segmentation")))
    url = model.push_to_hub("me/ark-tiny")
    assert url.startswith(server.url)
    assert server.repositories["me/ark-tiny"].private
    assert set(server.repositories["me/ark-tiny"].branches["main"]) == {CARD, CONFIG, WEIGHTS}
    for pulled in (ark.load("me/ark-tiny"), Model.from_pretrained("me/ark-tiny")):
        assert pulled.facts == model.facts
        one, other = model.predict(pictures()), pulled.predict(pictures())
        assert all(torch.equal(one[k].probabilities, other[k].probabilities) for k in one)


@pytest.mark.filterwarnings("ignore")  # torch's exporters warn of their own future
def test_what_is_pushed_is_exported_to_onnx(server: Hub, tmp_path: Path) -> None:
    ark.load(publish(tmp_path / "model", make_network("multilabel"))).push_to_hub("me/ark-tiny")
    onnx("me/ark-tiny", str(tmp_path / "model.onnx"))
    assert list(OnnxNetwork(tmp_path / "model.onnx").tasks) == ["toy/multilabel"]
    with pytest.raises(ConfigError, match=r"nothing/of/it: no such folder"):
        onnx("nothing/of/it", str(tmp_path / "other.onnx"))


def test_revisions_are_kept_apart(server: Hub, tmp_path: Path) -> None:
    for seed, revision in ((0, None), (1, "v2")):
        network = make_network("multilabel", seed=seed)
        model = ark.load(publish(tmp_path / str(seed), network))
        model.push_to_hub("me/ark-tiny", revision=revision)
    model.push_to_hub("me/ark-tiny", revision="v2")  # twice is no error
    first, second = (ark.load("me/ark-tiny", revision=r).facts.sha256 for r in (None, "v2"))
    assert first != second
    assert second == model.facts.sha256
    with pytest.raises(ConfigError, match=r"me/ark-tiny.*at revision v3"):
        ark.load("me/ark-tiny", revision="v3")


def test_what_a_hub_does_not_have_says_so(server: Hub, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"me/none: no such folder here, and no model of this"):
        ark.load("me/none")
    ark.load(publish(tmp_path, make_network("values"))).push_to_hub("me/private")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="me/private"):
        ark.load("me/private")
    assert ark.load("me/private", token=TOKEN).tasks


def test_a_changed_file_of_a_hub_is_refused(server: Hub, tmp_path: Path) -> None:
    ark.load(publish(tmp_path, make_network("values"))).push_to_hub("me/changed")
    files = server.repositories["me/changed"].branches["main"]
    files[WEIGHTS] = files[WEIGHTS][:-1] + b"x"
    with pytest.raises(ConfigError, match="cut off or changed"):
        ark.load("me/changed")
