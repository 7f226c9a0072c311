"""Runs the real `ark` command in this process, on tiny phantoms."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
import yaml

from ark.__main__ import main
from toys import HEADS

DATASETS = {
    "tiny_findings": ("findings", {"findings": "multilabel"}),
    "tiny_boxes": ("boxes", {"boxes": "detection"}),
    "tiny_organs": ("organs", {"organs": "segmentation", "diagnosis": "multiclass"}),
}
TASKS = [f"{name}/{task}" for name, (_, tasks) in DATASETS.items() for task in tasks]


def ark(*args: object) -> None:
    """`ark ARGS`; raises SystemExit where the command would exit with an error."""
    with mock.patch.object(sys, "argv", ["ark", *map(str, args)]):
        main()


def ark_in_a_child(*args: object) -> None:
    """`ark ARGS`, for a process that a forkserver started.

    Its loaders would inherit that way of starting processes: their workers would be no children
    of the trainer and outlive it.
    """
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)  # as in the process of the tests: another number rounds otherwise
    ark(*args)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe over three tiny generated datasets, in `folder`; returns its YAML.

    `changes` replace top-level keys.
    """
    for name, (preset, tasks) in DATASETS.items():
        args = {"preset": preset, "train": 12, "val": 6, "test": 6, "size": 96}
        dataset = {
            "name": name,
            "shards": str(folder / "shards" / name),
            "source": {"class_path": "datamodules.phantoms.PhantomSource", "init_args": args},
            "tasks": [{"name": t, "head": {"class_path": HEADS[k]}} for t, k in tasks.items()],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dataset))
    recipe: dict[str, Any] = {
        "datasets": [f"{name}.yaml" for name in DATASETS],
        "data": {"image_size": 96, "batch_size": 4, "workers": 0},
        "model": {"backbone": {"name": "test_efficientnet"}},
        "cycle": {"cycles": 2, "each": [{"lock": ["backbone"], "steps": 1}, {"steps": 2}]},
        "run": {"root": str(folder / "runs"), "wandb": "off", "pictures": 2},
        "trainer": {"log_every_n_steps": 1, "accelerator": "cpu", "enable_model_summary": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def losses(run: Path) -> dict[int, float]:
    """The logged training loss of every step, over all sessions of a run."""
    found: dict[int, float] = {}
    for path in sorted(run.glob("logs/version_*/metrics.csv")):
        table = pd.read_csv(path)
        columns = [c for c in table if c.startswith("train/") and c.endswith("/loss")]
        for step, row in table.set_index("step")[columns].dropna(how="all").iterrows():
            found[int(step)] = float(row.dropna().iloc[0])
    return found
