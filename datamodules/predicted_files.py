"""Predictions as files that other tools read: CSV, COCO json, mask PNGs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import torch
from torch import Tensor

from ark.exporting.onnx_network import OnnxNetwork
from ark.network import Network
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    MaskPrediction,
    PointsPrediction,
    TaskSpec,
    ValuesPrediction,
)
from datamodules.imaging.images import encode_png


@dataclass
class Item:
    """An image of the folder, on its way from the decoder to the files."""

    name: str  # path below the folder
    size: tuple[int, int] = (0, 0)  # (H, W) of the file in pixels
    view: Tensor | None = None  # (C, S, S) uint8, C = 1 or 3; None where the file is unreadable
    large: Tensor | None = None  # (C, h, w) uint8, the image to slide windows over
    masks: dict[str, MaskPrediction] = field(default_factory=dict)  # of those windows, by task
    error: str = ""
    mask_name: str = ""  # of its masks, below each class's folder


@dataclass
class Writer:
    """Collects rows and boxes, writes masks as they come, and the rest at the end."""

    output: Path
    network: Network | OnnxNetwork
    threshold: float
    score: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    boxes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    skipped: list[Item] = field(default_factory=list)

    def add(self, items: Sequence[Item], predictions: dict[str, Any]) -> None:
        for index, item in enumerate(items):
            row: dict[str, Any] = {"image": item.name}
            for key, prediction in predictions.items():
                task = self.network.tasks[key]
                if isinstance(prediction, ClassPrediction):
                    row |= _by_class(task, prediction.probabilities[index])
                elif isinstance(prediction, ValuesPrediction):
                    row |= _by_class(task, prediction.values[index])
                elif isinstance(prediction, BoxPrediction):
                    self._add_boxes(task, item, len(self.items), prediction, index)
                elif isinstance(prediction, MaskPrediction):
                    self._write_masks(task, item, item.masks.get(key) or prediction.item(index))
                elif isinstance(prediction, PointsPrediction):
                    self._add_points(task, item, prediction, index)
            self.rows.append(row)
            item.view = item.large = None  # not needed any more, and there may be many
            item.masks = {}
            self.items.append(item)

    def _add_boxes(
        self, task: TaskSpec, item: Item, image_id: int, prediction: BoxPrediction, index: int
    ) -> None:
        found = self.boxes.setdefault(task.key, [])
        boxes = prediction.boxes[index].numpy() * np.tile(self._scale(item), 2)
        scores, labels = prediction.scores[index].tolist(), prediction.labels[index].tolist()
        for box, score, label in zip(boxes, scores, labels, strict=True):
            if score < self.score:
                continue
            x1, y1, x2, y2 = (round(float(v), 2) for v in box)
            bbox = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            found.append(
                {"id": len(found) + 1, "image_id": image_id + 1, "category_id": label + 1}
                | {"bbox": bbox, "score": round(score, 5)}
            )

    def _add_points(
        self, task: TaskSpec, item: Item, prediction: PointsPrediction, index: int
    ) -> None:
        points = (prediction.points[index].numpy() * self._scale(item)).round(2).tolist()
        scores = prediction.scores[index].tolist()
        self.points.setdefault(task.key, []).extend(
            {"image": item.name, "point": name, "x": x, "y": y, "score": round(score, 5)}
            for name, (x, y), score in zip(task.classes, points, scores, strict=True)
        )

    def _scale(self, item: Item) -> np.ndarray:
        """(2,): pixels of the image's file, x and y, in one of the network's input."""
        return np.array([item.size[1], item.size[0]]) / self.network.backbone.image_size

    def _write_masks(self, task: TaskSpec, item: Item, masks: MaskPrediction) -> None:
        """Probabilities are brought to the file's size, and there become masks."""
        size = item.size[1], item.size[0]
        planes = [cv2.resize(plane, size) for plane in masks.probabilities[0].numpy()]
        full = replace(masks, probabilities=torch.from_numpy(np.stack(planes)[None]))
        for name, plane in zip(task.classes, full.masks(self.threshold)[0].numpy(), strict=True):
            path = self.output / "masks" / task.key / quote(name, safe=" ") / item.mask_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(plane))

    def finish(self) -> str:
        """Writes what was collected; returns a line that says what is where.

        Tables of an earlier run that this one does not write are removed, so that nobody takes
        them for its own.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        _write_csv(self.output / "classes.csv", self.rows)
        for key in self.network.tasks:
            self._write_boxes(key)
            _write_csv(self.output / "points" / f"{key}.csv", self.points.get(key, []))
        skipped = [{"image": item.name, "reason": item.error} for item in self.skipped]
        _write_csv(self.output / "skipped.csv", skipped)
        said = f"{len(self.items)} images -> {self.output}"
        if skipped:
            said += f"; {len(skipped)} could not be read, see {self.output / 'skipped.csv'}"
        return said

    def _write_boxes(self, key: str) -> None:
        path = self.output / "boxes" / f"{key}.json"
        if key not in self.boxes:
            return path.unlink(missing_ok=True)
        images = [
            {"id": n + 1, "file_name": item.name, "height": item.size[0], "width": item.size[1]}
            for n, item in enumerate(self.items)
        ]
        classes = self.network.tasks[key].classes
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(classes)]
        content = {"images": images, "categories": categories, "annotations": self.boxes[key]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def _by_class(task: TaskSpec, numbers: Tensor) -> dict[str, float]:
    """Cells of classes.csv."""
    return {f"{task.key}/{c}": n for c, n in zip(task.classes, numbers.tolist(), strict=True)}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Of no rows no file."""
    if not rows:
        return path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
