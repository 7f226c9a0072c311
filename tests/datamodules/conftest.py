"""A tiny dataset folder with every kind of annotation, for tests to read and to break."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

SIZE = (40, 48)  # (H, W)
IMAGES = {"train": ["a.jpg", "b.jpg", "c.1.jpg", "d.png"], "val": ["e.jpg"], "test": ["f.jpg"]}
TABLE = """image,person,split,read,Effusion,Mass,view,ctr,apex_x,apex_y,tip_x,tip_y,grade
a.jpg,p1,train,1,1,0,PA,0.51,10.5,3,47,40,severe
b.jpg,p1,train,1,0,,AP Supine,,,,,,
c.1.jpg,007,train,0,,,,,,,,,
d.png,p3,train,1,0.0,1.0,PA,0.4,,,0,7.25,mild
e.jpg,p4,val,1,1,0,PA,1e-3,20,20,,,mild
f.jpg,p5,test,1,0,1,AP Supine,-2,1,2,3,4,severe
g.jpg,p6,,1,0,1,PA,,,,,,
"""


class Folder:
    """The dataset's files under `root` and the `init_args` of the FolderSource that reads them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.args: dict[str, Any] = copy.deepcopy(INIT_ARGS) | {"root": str(root)}

    def path(self, name: str) -> Path:
        return self.root / name

    def annotation(self, name: str) -> dict[str, Any]:
        return self.args["annotations"][name]

    def table(self, old: str, new: str) -> None:
        text = self.path("labels.csv").read_text()
        assert old in text
        self.path("labels.csv").write_text(text.replace(old, new))

    def coco(self, split: str) -> dict[str, Any]:
        return json.loads(self.path(f"boxes_{split}.json").read_text())

    def write_coco(self, split: str, content: dict[str, Any]) -> None:
        self.path(f"boxes_{split}.json").write_text(json.dumps(content))

    def config(self, shards: Path) -> dict[str, Any]:
        """An item of `datasets` in YAML."""
        source = {"class_path": "datamodules.sources.FolderSource", "init_args": self.args}
        tasks = [{"name": name, "head": {"class_path": "x.Y"}} for name in self.args["annotations"]]
        return {"name": "tiny", "shards": str(shards), "source": source, "tasks": tasks}


INIT_ARGS: dict[str, Any] = {
    "table": "labels.csv",
    "patient": "person",
    "splits": {"files": "splits/{split}.txt"},
    "annotations": {
        "findings": {"kind": "multilabel", "classes": ["Effusion", "Mass"]},
        "view": {"kind": "multiclass", "column": "view", "classes": ["PA", "AP Supine"]},
        "boxes": {"kind": "detection", "coco": "boxes_{split}.json", "classes": ["opacity"]},
        "organs": {
            "kind": "segmentation",
            "masks": "masks/{class}/{stem}.png",
            "classes": ["left lung", "heart"],
        },
        "heart_read": {
            "kind": "segmentation",
            "masks": "masks/heart/{stem}.png",
            "classes": ["heart"],
            "where": {"column": "read", "equals": 1},
        },
        "ratio": {"kind": "values", "classes": ["ctr"]},
        "marks": {"kind": "points", "classes": ["apex", "tip"]},
        "grade": {"kind": "ordinal", "column": "grade", "classes": ["mild", "severe"]},
        # two raters, whose folders happen to be named so
        "lesion": {
            "kind": "segmentation",
            "masks": "masks/{rater}/{stem}.png",
            "raters": ["left lung", "heart"],
            "classes": ["lesion"],
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """a: all annotations; b: a heart mask and an annotated negative of boxes; c.1: nothing."""
    root = tmp_path / "data"
    for name in ("images", "splits", "masks/left lung", "masks/heart"):
        (root / name).mkdir(parents=True)
    (root / "labels.csv").write_text(TABLE)
    rng = np.random.default_rng(0)
    for split, names in IMAGES.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            channels = (3,) if name == "b.jpg" else ()
            pixels = rng.integers(0, 256, (*SIZE, *channels), np.uint8)
            cv2.imwrite(str(root / "images" / name), pixels)
        write_boxes(root, split, names)
    for organ, stems in {"left lung": "aef", "heart": "abef"}.items():
        for stem in stems:
            mask = (rng.random(SIZE) > 0.5).astype(np.uint8) * 255
            cv2.imwrite(str(root / "masks" / organ / f"{stem}.png"), mask)
    return Folder(root)


def write_boxes(root: Path, split: str, names: list[str]) -> None:
    """Every image but c.1.jpg is listed; all but b.jpg have one box."""
    listed = [name for name in names if name != "c.1.jpg"]
    images = [
        {"id": i, "file_name": name, "width": SIZE[1], "height": SIZE[0]}
        for i, name in enumerate(listed)
    ]
    boxes = [
        {"id": 10 + i, "image_id": i, "category_id": 5, "bbox": [2.5, 3, 10 + i, 8]}
        for i, name in enumerate(listed)
        if name != "b.jpg"
    ]
    categories = [{"id": 5, "name": "opacity"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / f"boxes_{split}.json").write_text(json.dumps(content))
