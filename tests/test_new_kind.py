"""A kind of task that no shipped head knows: one file with a head and one YAML, and it trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import yaml
from commands import ark

SIZE = 96


def write_images(folder: Path, count: int) -> None:
    """Gray noise with one bright disc; a table says where its centre is, or nothing."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for n in range(count):
        x, y = rng.integers(20, SIZE - 20, 2).tolist()
        image = rng.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
        cv2.circle(image, (x, y), 8, 230, -1)
        cv2.imwrite(str(folder / "images" / f"i{n:03}.png"), image)
        blank = n % 10 == 9
        split = ("val", "test", *["train"] * 4)[n % 6]
        rows.append([f"i{n:03}.png", split, "" if blank else x, "" if blank else y])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "split", "spot_x", "spot_y"], *rows])


def test_a_new_kind_of_head_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    write_images(tmp_path / "spots", 96)
    source = {
        "root": str(tmp_path / "spots"),
        "table": "labels.csv",
        "splits": {"column": "split"},
        "annotations": {"spot": {"kind": "points", "classes": ["spot"]}},
    }
    dataset = {
        "name": "spots",
        "shards": str(tmp_path / "shards"),
        "source": {"class_path": "datamodules.sources.FolderSource", "init_args": source},
        "tasks": [{"name": "spot", "head": {"class_path": "landmarks.LandmarkHead"}}],
    }
    (tmp_path / "spots.yaml").write_text(yaml.safe_dump(dataset))
    ark("shards", "write", tmp_path / "spots.yaml")
    recipe = {
        "datasets": ["spots.yaml"],
        "data": {"image_size": SIZE, "batch_size": 8, "workers": 0},
        "model": {
            "backbone": {"name": "test_efficientnet"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "cycle": {"cycles": 12, "each": [{"passes": 1}]},
        "run": {"root": str(tmp_path / "runs"), "wandb": "off", "validate_every": 12},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ark("fit", "--config", tmp_path / "recipe.yaml")
    run = tmp_path / "runs" / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["student"]["spots/spot"]["hits"] > results["start"]["spots/spot"]["hits"] + 0.3
    assert json.loads((run / "intervals.json").read_text())["teacher"]["spots/spot"]["hits"]
    assert (run / "pictures" / "spots" / "spot.png").is_file()
    ark("predict", run, tmp_path / "spots/images", f"--output={tmp_path / 'out'}", "--workers=0")
    rows = list(csv.DictReader((tmp_path / "out/points/spots/spot.csv").open()))
    assert len(rows) == 96
    assert all(0 <= float(row["x"]) <= SIZE for row in rows)
