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
# go behind a start, in front of any datasets (docs/growing.md)
DOWNSTREAM = [CONFIGS / "recipes" / f"{n}.yaml" for n in ("finetune", "head_only", "linear_probe")]
RECIPES = sorted({CONFIGS / "quickstart.yaml", *CONFIGS.glob("recipes/*.yaml")} - {*DOWNSTREAM})
# of the papers' size: their public datasets are not here
FULL = [path for path in RECIPES if (path.parent / f"{path.stem}_small.yaml").is_file()]
SMALL = [path for path in RECIPES if path not in FULL]
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
@pytest.mark.parametrize("recipe", SMALL, ids=lambda path: path.stem)
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
    # items given on the command line are merged into the file's: its own must go first
    short = "[{lock: [backbone], steps: 1}, {steps: 1}]"
    options += ["--cycle.cycles=1", "--cycle.each=[]", f"--cycle.each={short}"]
    ark("fit", "--config", recipe, *options)
    name = yaml.safe_load(recipe.read_text())["run"]["name"]
    results = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    only = yaml.safe_load(recipe.read_text())["data"].get("only")
    assert list(results["student"]) == (only or [key for key, _ in tasks_of(recipe)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "data"),
    [
        ("ark_small", "xrays_labels"),
        ("ark_plus_small", "xrays_labels"),
        ("foundation_x_small", "xrays"),
        ("foundation_x_plus_small", "xrays_guided"),
    ],
)
def test_a_small_recipe_runs_on_real_xrays(
    recipe: str, data: str, tmp_path: Path, monkeypatch, real_data: Path
) -> None:
    monkeypatch.setenv("ARK_DATA", str(real_data.resolve()))
    monkeypatch.chdir(tmp_path)
    folder = CONFIGS / "recipes"
    overlay = folder / "data" / f"{data}.yaml"
    write([str(path) for path in listed(overlay)])
    options = ["--data.image_size=64", "--data.batch_size=2", "--data.workers=0"]
    options += ["--cycle.cycles=1", "--cycle.each=[]", "--cycle.each=[{train: [head], steps: 1}]"]
    options += ["--run.wandb=off", "--run.baseline=false", "--run.bootstraps=0", "--run.pictures=0"]
    options += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    ark("fit", "--config", folder / f"{recipe}.yaml", "--config", overlay, *options)
    results = json.loads((tmp_path / "runs" / data / "results.json").read_text())
    only = yaml.safe_load(overlay.read_text()).get("data", {}).get("only")
    assert list(results["student"]) == (only or [key for key, _ in tasks_of(overlay)])


def tasks_of(recipe: Path) -> list[tuple[str, str]]:
    """(key, kind) of every task of the recipe's datasets, in their order."""
    found = []
    for dataset in load_datasets(list(map(str, listed(recipe)))):
        annotations = dataset.source["init_args"].get("annotations", {})
        for task in dataset.tasks:
            kind = annotations.get(task.name, {}).get("kind", "")
            found.append((f"{dataset.name}/{task.name}", kind))
    return found


@pytest.mark.parametrize("recipe", FULL, ids=lambda path: path.stem)
@pytest.mark.parametrize("rates", [None, "ark_published", "ark_as_run"])
def test_a_full_recipe_is_understood(recipe: Path, rates: str | None, capsys) -> None:
    if rates and not recipe.stem.startswith("ark"):
        pytest.skip("these are Ark's rates")
    configs = [recipe, *([CONFIGS / "recipes" / "rates" / f"{rates}.yaml"] if rates else [])]
    with pytest.raises(SystemExit) as done:
        ark("fit", *(f"--config={path}" for path in configs), "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert done.value.code == 0
    known = [key for key, _ in tasks_of(recipe)]
    assert set(printed["data"]["only"] or known) <= set(known)
    rate = printed["model"]["optimizer"]["init_args"]["lr"]
    assert rate == {None: rate, "ark_published": 0.3, "ark_as_run": 0.01}[rates]


@pytest.mark.parametrize("recipe", DOWNSTREAM, ids=lambda path: path.stem)
def test_a_downstream_recipe_is_understood_with_any_dataset(recipe: Path, capsys) -> None:
    """They run in tests/test_growing.py."""
    dataset = f"--datasets+={CONFIGS / 'datasets' / 'nih14.yaml'}"
    with pytest.raises(SystemExit) as done:
        ark("fit", f"--config={recipe}", "--init_from=a/run", dataset, "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (done.value.code, printed["init_from"]) == (0, "a/run")
    locked = recipe.stem != "finetune"
    assert all((phase["train"] == ["head"]) == locked for phase in printed["cycle"]["each"])


@pytest.mark.parametrize("name", ["foundation_x", "foundation_x_plus"])
def test_foundation_x_has_the_papers_twenty_tasks_in_their_order(name: str) -> None:
    """Spec foundation_x.md, The cycle."""
    table = {
        "chexpert": "C", "nih14_full": "C", "vindr_cxr": "C", "shenzhen": "C", "mimic_cxr": "C",
        "tbx11k": "CL", "node21": "CL", "candid_ptx": "CLS", "rsna_pneumonia": "CL",
        "chestx_det": "CLS", "siim_acr": "CLS",
    }  # fmt: skip
    letters = {"multilabel": "C", "multiclass": "C", "detection": "L", "segmentation": "S"}
    found: dict[str, str] = {}
    for key, kind in tasks_of(CONFIGS / "recipes" / f"{name}.yaml"):
        dataset = key.split("/")[0]
        found[dataset] = found.get(dataset, "") + letters[kind]
    assert list(found.items()) == list(table.items())
    assert sum(map(len, found.values())) == 20


def test_version_106_trains_masks_in_three_stages() -> None:
    folder = CONFIGS / "recipes"
    phases = yaml.safe_load((folder / "locks" / "foundation_x_plus_v106.yaml").read_text())["cycle"]
    plain = yaml.safe_load((folder / "foundation_x_plus.yaml").read_text())["cycle"]
    first, decoder, last = phases["each"]
    assert [first, last] == plain["each"]
    assert decoder == {"kinds": ["segmentation"], "train": ["head", "shared.masks"], "passes": 0.5}
