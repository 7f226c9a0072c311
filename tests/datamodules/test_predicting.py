"""`ark predict` of values and points; tests/test_main_path.py has the other kinds."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ark.types import (
    ClassPrediction,
    ConfigError,
    MaskPrediction,
    PointsPrediction,
    TaskSpec,
    ValuesPrediction,
)
from datamodules import predicting
from datamodules.predicting import predict

SIDE = 32


class Marks(nn.Module):
    """Finds the brightest pixel; as value the mean gray, as class whether it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(image_size=SIDE)
        tasks = [
            TaskSpec("d", "gray", "values", ("mean", "most")),
            TaskSpec("d", "bright", "multiclass", ("no", "yes")),
            TaskSpec("d", "marks", "points", ("peak", "corner")),
        ]
        self.tasks = {task.key: task for task in tasks}

    def forward(self, images: Tensor) -> dict[str, object]:
        gray = images[:, 0].float()
        flat = gray.flatten(1)
        top = flat.argmax(dim=1)
        peak = torch.stack([top % SIDE + 0.5, top // SIDE + 0.5], dim=1)
        points = torch.stack([peak, torch.full_like(peak, SIDE)], dim=1)
        scores = torch.tensor([[0.9, 0.25]]).expand(len(images), 2)
        bright = (flat.mean(dim=1, keepdim=True) > 100).float()
        return {
            "d/gray": ValuesPrediction(torch.stack([flat.mean(1), flat.amax(1)], dim=1)),
            "d/bright": ClassPrediction(torch.cat([1 - bright, bright], dim=1)),
            "d/marks": PointsPrediction(points, scores),
        }


@pytest.fixture
def output(tmp_path: Path, monkeypatch) -> Path:
    """Predictions of a dark image, twice as wide as high, and of a bright one, with a peak each."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name, size, gray, (x, y) in (
        ("dark.png", (64, 128), 10, (100, 16)),
        ("sub/bright, wide.png", (32, 32), 200, (5, 20)),
    ):
        image = np.full(size, gray, np.uint8)
        image[y : y + size[0] // SIDE, x : x + size[1] // SIDE] = 250
        cv2.imwrite(str(tmp_path / "images" / name), image)
    monkeypatch.setattr(predicting, "load_network", lambda *_: Marks())
    predict("x", str(tmp_path / "images"), str(tmp_path / "out"), workers=0)
    return tmp_path / "out"


def test_values_are_columns_beside_the_probabilities(output: Path) -> None:
    dark, bright = csv.DictReader((output / "classes.csv").open())
    columns = ["d/gray/mean", "d/gray/most", "d/bright/no", "d/bright/yes"]
    assert list(dark) == list(bright) == ["image", *columns]
    assert (dark["image"], bright["image"]) == ("dark.png", "sub/bright, wide.png")
    assert float(dark["d/gray/mean"]) == pytest.approx(10 + 240 / 1024, abs=0.01)
    assert float(bright["d/gray/most"]) == 250
    assert (float(dark["d/bright/yes"]), float(bright["d/bright/yes"])) == (0, 1)


def test_points_are_in_pixels_of_the_images_file(output: Path) -> None:
    rows = list(csv.DictReader((output / "points/d/marks.csv").open()))
    found = [(row["image"], row["point"], float(row["x"]), float(row["y"])) for row in rows]
    # the middle of the bright cell: 4 x 2 pixels of the first file, one of the second
    assert found == [
        ("dark.png", "peak", 102, 17),
        ("dark.png", "corner", 128, 64),
        ("sub/bright, wide.png", "peak", 5.5, 20.5),
        ("sub/bright, wide.png", "corner", 32, 32),
    ]
    assert [float(row["score"]) for row in rows] == [0.9, 0.25] * 2


class Zones(nn.Module):
    """Two classes that exclude each other: of the left half 0.4 and 0.35, of the right 0.3 both."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(image_size=SIDE)
        task = TaskSpec("d", "zones", "segmentation", ("left", "none"))
        self.tasks = {task.key: task}

    def predict(self, key: str, images: Tensor) -> MaskPrediction:
        masks = torch.full((len(images), 2, SIDE, SIDE), 0.3)
        masks[:, 0, :, : SIDE // 2], masks[:, 1, :, : SIDE // 2] = 0.4, 0.35
        return MaskPrediction(masks, exclusive=True)

    def forward(self, images: Tensor) -> dict[str, object]:
        return {key: self.predict(key, images) for key in self.tasks}


@pytest.mark.parametrize("tile", [0, SIDE])
def test_of_exclusive_classes_the_most_probable_is_written(tmp_path, monkeypatch, tile) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((64, 64), np.uint8))
    monkeypatch.setattr(predicting, "load_network", lambda *_: Zones())
    out = tmp_path / "out"
    predict("x", str(tmp_path / "images"), str(out), workers=0, tile=tile)
    left, none = (cv2.imread(str(out / f"masks/d/zones/{c}/a.png"), 0) for c in ("left", "none"))
    assert left[:, :30].all()
    assert not left[:, 34:].any()
    assert not none.any()


def test_one_file_is_enough(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "load_network", lambda *_: Marks())
    images = output.parent / "images"
    predict("x", str(images / "dark.png"), str(output / "one"), workers=0)
    (row,) = csv.DictReader((output / "one" / "classes.csv").open())
    assert row == next(csv.DictReader((output / "classes.csv").open()))
    with pytest.raises(ConfigError, match=r"nowhere'; no such folder or file"):
        predict("x", str(images / "nowhere"), str(output / "none"), workers=0)


def test_an_earlier_runs_tables_do_not_stay(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "load_network", lambda *_: Marks())
    bad = output.parent / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no image")
    predict("x", str(bad), str(output), workers=0)
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["skipped.csv"]
