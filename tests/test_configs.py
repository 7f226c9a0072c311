"""Every shipped recipe runs a few steps through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import ark

from ark.types import KINDS
from datamodules.commands import write
from datamodules.config import load_datasets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted([CONFIGS / "quickstart.yaml", *CONFIGS.glob("recipes/*.yaml")])
DATASETS = sorted(CONFIGS.glob("datasets/*.yaml"))


def listed(recipe: Path) -> list[Path]:
    content = yaml.safe_load(recipe.read_text())
    return [(recipe.parent / item).resolve() for item in content["datasets"]]


def test_every_dataset_is_in_a_recipe() -> None:
    assert {path for recipe in RECIPES for path in listed(recipe)} == set(DATASETS)


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_a_datasets_file_is_named_as_the_dataset(path: Path) -> None:
    (dataset,) = load_datasets(str(path))
    assert dataset.name == path.stem
    assert dataset.tasks
    for annotation in dataset.source["init_args"].get("annotations", {}).values():
        assert annotation["kind"] in KINDS


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, tmp_path: Path, monkeypatch, request) -> None:
    real = "phantom" not in recipe.read_text()
    if real:
        folder = request.getfixturevalue("real_data")
        monkeypatch.setenv("ARK_DATA", str(folder.resolve()))
    monkeypatch.chdir(tmp_path)  # shards are written below the working directory
    if real:
        write([str(path) for path in listed(recipe)])
    options = ["--data.image_size=96", "--data.batch_size=2", "--data.workers=0"]
    options += ["--run.wandb=off", "--run.validate_every=1", "--trainer.limit_val_batches=2"]
    options += ["--trainer.limit_test_batches=20", "--trainer.enable_model_summary=false"]
    # items given on the command line are merged into the file's: its `passes` must go
    short = "[{lock: [backbone], steps: 1, passes: null}, {steps: 1, passes: null}]"
    options += ["--cycle.cycles=1", f"--cycle.each={short}"]
    ark("fit", "--config", recipe, *options)
    name = yaml.safe_load(recipe.read_text())["run"]["name"]
    results = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    tasks = [
        f"{d.name}/{t.name}" for d in load_datasets(list(map(str, listed(recipe)))) for t in d.tasks
    ]
    assert list(results["student"]) == tasks
