"""`ark export`: from a run to a model that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from commands import ark as command
from commands import write_recipe
from published_models import pictures

import ark
from ark.checkpoint import load_network
from ark.published.config import CARD, CONFIG


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    only = ["tiny_findings/findings", "tiny_organs/organs"]
    recipe = write_recipe(
        folder,
        data={"image_size": 64, "batch_size": 4, "workers": 0, "only": only},
        run={"root": str(folder), "name": "small", "wandb": "off", "pictures": 0, "bootstraps": 20},
    )
    path = folder / "tiny_findings.yaml"
    dataset = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(dataset | {"license": "CC0", "attribution": "Phantom et al."}))
    command("fit", "--config", recipe)
    return folder / "small"


def test_the_teacher_comes_out_with_all_that_is_known(run: Path, tmp_path: Path) -> None:
    command("export", run, tmp_path / "out", "--license=apache-2.0")
    model = ark.load(tmp_path / "out")
    expected = load_network(run, "teacher")(pictures())
    for key, prediction in model.predict(pictures()).items():
        assert torch.equal(prediction.probabilities, expected[key].probabilities)
    facts = model.facts
    assert (facts.which, facts.name, facts.license) == ("teacher", "small", "apache-2.0")
    results = json.loads((run / "results.json").read_text())["teacher"]
    found = facts.metrics["tiny_organs/organs"]["dice"]
    assert found["value"] == results["tiny_organs/organs"]["dice"]
    assert len(found["interval"]) == 2
    assert set(facts.data) == {"tiny_findings", "tiny_organs"}
    assert facts.data["tiny_findings"]["license"] == "CC0"
    assert len(facts.data["tiny_organs"]["sha256"]) == 64
    assert facts.recipe["data"]["image_size"] == 64
    assert facts.code["timm"]


def test_the_card_says_it_to_people(run: Path, tmp_path: Path) -> None:
    command("export", run, tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "ark"
    assert front["license"] == "other"
    dice = json.loads((run / "results.json").read_text())["teacher"]["tiny_organs/organs"]["dice"]
    for part in (
        "tiny_findings/findings", "right_lung, left_lung, heart", f"dice {dice:.3f} (",
        "CC0", "Phantom et al.", "12 train, 6 val, 6 test", "## Intended use and limits",
        "is no medical device",
        'ark.load("', "64 x 64 pixels",
    ):  # fmt: skip
        assert part in card, part


def test_student_heads_and_checkpoints_can_be_chosen(run: Path, tmp_path: Path) -> None:
    args = ["--which=student", '--tasks=["tiny_organs/organs"]', "--name=mine"]
    command("export", run / "checkpoints" / "last.ckpt", tmp_path / "out", *args)
    model = ark.load(tmp_path / "out")
    assert list(model.tasks) == ["tiny_organs/organs"]
    expected = load_network(run, "student").predict("tiny_organs/organs", pictures())
    found = model.predict(pictures())["tiny_organs/organs"]
    assert torch.equal(found.probabilities, expected.probabilities)
    assert (model.facts.which, model.facts.name) == ("student", "mine")
    assert model.facts.recipe["run"]["name"] == "small"


def test_a_run_loads_without_export(run: Path) -> None:
    expected = load_network(run, "teacher")(pictures())
    for path in (run, run / "model", run / "checkpoints" / "last.ckpt"):
        found = ark.load(path).predict(pictures())
        assert all(torch.equal(found[k].probabilities, expected[k].probabilities) for k in found)


def test_predict_reads_what_was_exported(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.fromarray(pictures()[0, 0].numpy()).save(tmp_path / "images" / "x.png")
    command("export", run, tmp_path / "out")
    tables = []
    for path in (run, tmp_path / "out"):
        output = tmp_path / f"found{len(tables)}"
        command("predict", path, tmp_path / "images", f"--output={output}", "--workers=0")
        tables.append(pd.read_csv(output / "classes.csv"))
    assert tables[0].equals(tables[1])


def test_nothing_is_overwritten_unasked(run: Path, tmp_path: Path, capsys) -> None:
    command("export", run, tmp_path / "out")
    before = (tmp_path / "out" / CONFIG).read_text()
    with pytest.raises(SystemExit):
        command("export", run, tmp_path / "out", "--which=student")
    assert "--overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "out" / CONFIG).read_text() == before
    command("export", run, tmp_path / "out", "--which=student", "--overwrite=true")
    assert ark.load(tmp_path / "out").facts.which == "student"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{run}", "out", '--tasks=["tiny_organs/none"]'], "tasks: 'tiny_organs/none'"),
        (["nowhere", "out"], "teacher.safetensors is missing"),
    ],
)
def test_wrong_input_is_said(
    run: Path, tmp_path: Path, args, said: str, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command("export", *[arg.format(run=run) for arg in args])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
