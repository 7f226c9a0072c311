"""The shipped small recipes on tiny phantoms with a tiny backbone: the method stays as it is."""

from __future__ import annotations

from pathlib import Path

import yaml
from commands import DATASETS, write_recipe

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "recipes"
TRAIN, BATCH = 12, 2  # samples of each tiny dataset, and of a step
PASS = TRAIN // BATCH


def tiny(name: str, folder: Path, cycles: int) -> Path:
    """Writes the recipe, with everything that it needs, into `folder`."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text().replace("phantom_", "tiny_"))
    datasets = [Path(path).stem for path in recipe["datasets"]]
    recipe["datasets"] = [f"{dataset}.yaml" for dataset in DATASETS if dataset in datasets]
    recipe["data"] |= {"image_size": 64, "batch_size": BATCH, "workers": 0}
    recipe["model"]["backbone"] = {"name": "test_efficientnet"}
    recipe["cycle"]["cycles"] = cycles
    recipe["run"] = {"root": str(folder / "runs"), "wandb": "off", "pictures": 0}
    recipe["run"] |= {"baseline": False, "bootstraps": 0, "name": name}
    return write_recipe(folder, **recipe)
