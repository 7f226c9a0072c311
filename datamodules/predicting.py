"""`ark predict`: a checkpoint, a folder of images, and files that other tools read."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ark.exporting.onnx_network import OnnxNetwork
from ark.exporting.opening import load_network
from ark.network import Network
from ark.sliding_window import sliding_window
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    ConfigError,
    MaskPrediction,
    PointsPrediction,
    TaskSpec,
    ValuesPrediction,
)
from datamodules.imaging.images import Window, check_window, decode_image, encode_png
from datamodules.transforms import Transform

log = logging.getLogger("ark")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".dcm")


def predict(
    checkpoint: str,
    images: str,
    output: str = "predictions",
    which: Literal["teacher", "student"] = "teacher",
    threshold: float = 0.5,
    score: float = 0.05,
    batch_size: int = 16,
    workers: int = 2,
    window: str | list[float] = "auto",
    tile: int = 0,
) -> None:
    """Runs every head of a checkpoint on a folder of images.

    Writes into `output`: classes.csv (a probability or, of kind values, a number a column,
    `<dataset>/<task>/<class>`), boxes/<dataset>/<task>.json (COCO results with their categories,
    pixels of the image's file), masks/<dataset>/<task>/<class>/<image>.png (0 and 255, the image's
    size), points/<dataset>/<task>.csv (a row a point, pixels of the image's file) and skipped.csv.

    Args:
        checkpoint: folder of a run, its model/ folder, a file in its checkpoints/, a folder of
            `ark export`, or a file of `ark onnx`.
        images: folder, searched with its subfolders for JPEG, PNG, WebP, TIFF and DICOM files.
        output: folder to write.
        which: the network of the two; what was exported is one alone.
        threshold: probability from which a pixel belongs to a class; where classes exclude each
            other (mode multiclass), it belongs to the most probable, whatever the threshold.
        score: boxes below it are left out; a head leaves out those below its own
            score_threshold, whatever is asked for here.
        batch_size: images at once.
        workers: processes that decode.
        window: how pixels of more than 8 bits become 8, as in the dataset's YAML: auto, header,
            minmax, percentile, full or [low, high].
        tile: pixels of an image's longer side at which segmentation heads see it through
            overlapping windows of the network's input size; 0: the whole image at once, as in
            training. For structures that are lost when a large image is made small.

    Raises:
        ConfigError: no image in the folder, no checkpoint, or `tile` is below 0.
    """
    if tile < 0:
        raise ConfigError(f"tile: {tile}; expected a longer side in pixels, or 0 to switch it off")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(checkpoint, which).to(device)
    side = network.backbone.image_size
    folder = _Folder(Path(images), side, check_window(window, "window"), tile)
    writer = _Writer(Path(output), network, threshold, score)
    loader = DataLoader(folder, batch_size, num_workers=workers, collate_fn=list)
    for items in tqdm(loader, desc="predict", unit="batch"):
        good = [item for item in items if item.view is not None]
        writer.skipped += [item for item in items if item.view is None]
        if good:
            # gray among colour: all get three channels
            views = torch.stack([item.view.expand(3, -1, -1) for item in good]).to(device)
            predictions = {key: p.to("cpu") for key, p in network(views).items()}
            for item in good if tile else []:
                item.masks = _tiled(network, item, device)
            writer.add(good, predictions)
    log.info(writer.finish())


def _tiled(
    network: Network | OnnxNetwork, item: _Item, device: torch.device
) -> dict[str, MaskPrediction]:
    """Of every segmentation task, (1, K, h, w), from windows over the image."""
    assert item.large is not None
    image, side = item.large.expand(3, -1, -1)[None].to(device), network.backbone.image_size
    return {
        key: sliding_window(partial(network.predict, key), image, side).to("cpu")
        for key, task in network.tasks.items()
        if task.kind == "segmentation"
    }


@dataclass
class _Item:
    name: str  # path below the folder
    size: tuple[int, int] = (0, 0)  # (H, W) of the file in pixels
    view: Tensor | None = None  # (C, S, S) uint8, C = 1 or 3; None where the file is unreadable
    large: Tensor | None = None  # (C, h, w) uint8, the image to slide windows over
    masks: dict[str, MaskPrediction] = field(default_factory=dict)  # of those windows, by task
    error: str = ""
    mask_name: str = ""  # of its masks, below each class's folder


class _Folder(Dataset[_Item]):
    def __init__(self, folder: Path, image_size: int, window: Window, tile: int = 0) -> None:
        self.folder, self.window, self.tile = folder, window, tile
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ConfigError(f"images: no {', '.join(SUFFIXES)} file in {str(folder)!r}")
        self.transform = Transform("multiclass", image_size, None)
        self.stems = Counter(path.with_suffix("") for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Item:
        path = self.paths[index]
        name = path.relative_to(self.folder).as_posix()
        try:
            image = decode_image(path.read_bytes(), name, window=self.window)
        except (ConfigError, OSError) as error:
            return _Item(name, error=str(error))
        view = self.transform(image, None, 0, image.shape[:2]).student.transpose(2, 0, 1)
        # a.jpg and a.png side by side would share a.png
        alone = self.stems[path.with_suffix("")] == 1
        mask_name = str(Path(name).with_suffix(".png")) if alone else f"{name}.png"
        pixels = torch.from_numpy(np.ascontiguousarray(view))
        large = _resized(image, self.tile) if self.tile else None
        return _Item(name, image.shape[:2], pixels, large, mask_name=mask_name)


def _resized(image: np.ndarray, longer: int) -> Tensor:
    """(H, W, C) -> (C, h, w), whose longer side is `longer` pixels."""
    scale = longer / max(image.shape[:2])
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method).reshape(size[1], size[0], -1)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))


@dataclass
class _Writer:
    """Collects rows and boxes, writes masks as they come, and the rest at the end."""

    output: Path
    network: Network | OnnxNetwork
    threshold: float
    score: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    boxes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    items: list[_Item] = field(default_factory=list)
    skipped: list[_Item] = field(default_factory=list)

    def add(self, items: Sequence[_Item], predictions: dict[str, Any]) -> None:
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
        self, task: TaskSpec, item: _Item, image_id: int, prediction: BoxPrediction, index: int
    ) -> None:
        scale = np.tile(self._scale(item), 2)
        found = self.boxes.setdefault(task.key, [])
        for box, score, label in zip(
            prediction.boxes[index].numpy() * scale,
            prediction.scores[index].tolist(),
            prediction.labels[index].tolist(),
            strict=True,
        ):
            if score >= self.score:
                x1, y1, x2, y2 = (round(float(v), 2) for v in box)
                found.append(
                    {
                        "id": len(found) + 1,
                        "image_id": image_id + 1,
                        "category_id": label + 1,
                        "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                        "score": round(score, 5),
                    }
                )

    def _add_points(
        self, task: TaskSpec, item: _Item, prediction: PointsPrediction, index: int
    ) -> None:
        points = (prediction.points[index].numpy() * self._scale(item)).round(2).tolist()
        scores = prediction.scores[index].tolist()
        self.points.setdefault(task.key, []).extend(
            {"image": item.name, "point": name, "x": x, "y": y, "score": round(score, 5)}
            for name, (x, y), score in zip(task.classes, points, scores, strict=True)
        )

    def _scale(self, item: _Item) -> np.ndarray:
        """(2,): pixels of the image's file, x and y, in one of the network's input."""
        return np.array([item.size[1], item.size[0]]) / self.network.backbone.image_size

    def _write_masks(self, task: TaskSpec, item: _Item, masks: MaskPrediction) -> None:
        """Probabilities are brought to the file's size, and there become masks."""
        size = item.size[1], item.size[0]
        planes = [cv2.resize(plane, size) for plane in masks.probabilities[0].numpy()]
        full = replace(masks, probabilities=torch.from_numpy(np.stack(planes)[None]))
        for name, plane in zip(task.classes, full.masks(self.threshold)[0].numpy(), strict=True):
            path = self.output / "masks" / task.key / quote(name, safe=" ") / item.mask_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(plane))

    def finish(self) -> str:
        """Writes what was collected; returns a line that says what is where."""
        self.output.mkdir(parents=True, exist_ok=True)
        if self.rows:
            _write_csv(self.output / "classes.csv", self.rows)
        images = [
            {"id": n + 1, "file_name": item.name, "height": item.size[0], "width": item.size[1]}
            for n, item in enumerate(self.items)
        ]
        for key, boxes in self.boxes.items():
            classes = self.network.tasks[key].classes
            categories = [{"id": n + 1, "name": name} for n, name in enumerate(classes)]
            content = {"images": images, "categories": categories, "annotations": boxes}
            path = self.output / "boxes" / f"{key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        for key, points in self.points.items():
            path = self.output / "points" / f"{key}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_csv(path, points)
        (self.output / "skipped.csv").unlink(missing_ok=True)
        said = f"{len(self.items)} images -> {self.output}"
        if self.skipped:
            skipped = [{"image": item.name, "reason": item.error} for item in self.skipped]
            _write_csv(self.output / "skipped.csv", skipped)
            said += f"; {len(skipped)} could not be read, see {self.output / 'skipped.csv'}"
        return said


def _by_class(task: TaskSpec, numbers: Tensor) -> dict[str, float]:
    """Cells of classes.csv."""
    return {f"{task.key}/{c}": n for c, n in zip(task.classes, numbers.tolist(), strict=True)}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
