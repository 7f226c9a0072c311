"""Predictions of one image as plain JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from ark.published.model import Model
from ark.resizing import resize
from ark.serving.reading import Picture
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    MaskPrediction,
    PointsPrediction,
    Prediction,
    ValuesPrediction,
)

LONGEST = 1024  # pixels of the longer side of a mask and of the preview; larger ones are shrunk
Size = tuple[int, int]  # width, height in pixels


def describe(model: Model) -> dict[str, Any]:
    """What `GET /api/model` says of the model: name, input, and tasks with their classes.

    A multilabel task's "thresholds", one a class, are those that were chosen on validation, 0.5
    where none was.
    """
    facts = model.facts
    return {
        "name": facts.name,
        "which": facts.which,
        "backbone": facts.architecture["backbone"]["name"],
        "image_size": model.image_size,
        "license": facts.license,
        "tasks": {key: _describe_task(model, key) for key in model.tasks},
    }


def answer(
    model: Model, picture: Picture, tasks: Sequence[str] | None, preview: bool
) -> dict[str, Any]:
    """What `POST /api/predict` says of a picture.

    Args:
        tasks: which; all if None.
        preview: whether the picture is sent back.

    Returns:
        "image" {"width", "height" in pixels, "turned"}, and "tasks": by task {"kind", and one of
        "classes" {name: probability}, "values" {name: number}, "boxes" [{"box": [x1, y1, x2, y2],
        "score", "label"}], "points" {name: [x, y, score]}, "masks" {name: PNG} with "exclusive"}.
        Boxes and points are in pixels of "image", which is upright. PNGs are gray, base64, their
        longer side at most LONGEST; a mask's 0 to 255 are probabilities 0 to 1, and it covers the
        whole image. "preview" is one of the size of the masks: what the model sees before it is
        made square, 16 bits brought to 8, and upright.

    Raises:
        ConfigError: no such task.
    """
    height, width = picture.pixels.shape[:2]
    size, small = (width, height), _bounded(width, height)
    # square already, so that nothing of the whole picture's size is computed for each class
    found = model.predict([resize(picture.pixels, model.image_size)], tasks)
    answered: dict[str, Any] = {
        "image": {"width": width, "height": height, "turned": picture.turned},
        "tasks": {
            key: {"kind": model.tasks[key].kind} | _plain(model, key, prediction, size, small)
            for key, prediction in found.items()
        },
    }
    if preview:
        answered["preview"] = _png(_scaled(picture.pixels, small))
    return answered


def _describe_task(model: Model, key: str) -> dict[str, Any]:
    task = model.tasks[key]
    said: dict[str, Any] = {"kind": task.kind, "classes": list(task.classes)}
    if task.kind == "multilabel":
        facts = model.network.head(key).graph_facts()
        said |= {name: facts[name] for name in ("thresholds",) if name in facts}
    return said


def _bounded(width: int, height: int) -> Size:
    scale = min(1.0, LONGEST / max(width, height))
    return max(1, round(scale * width)), max(1, round(scale * height))


def _plain(
    model: Model, key: str, prediction: Prediction, size: Size, small: Size
) -> dict[str, Any]:
    names = model.tasks[key].classes
    scale = np.array(size) / model.image_size  # pixels of the image, x and y, in one of the input
    if isinstance(prediction, ClassPrediction):
        return {"classes": _by_name(names, prediction.probabilities)}
    if isinstance(prediction, ValuesPrediction):
        return {"values": _by_name(names, prediction.values)}
    if isinstance(prediction, BoxPrediction):
        return {"boxes": _boxes(names, prediction, scale)}
    if isinstance(prediction, PointsPrediction):
        return {"points": _points(names, prediction, scale)}
    assert isinstance(prediction, MaskPrediction)
    return {"exclusive": prediction.exclusive, "masks": _masks(names, prediction, small)}


def _by_name(names: Sequence[str], numbers: Tensor) -> dict[str, float]:
    return {name: round(n, 5) for name, n in zip(names, numbers[0].tolist(), strict=True)}


def _boxes(names: Sequence[str], found: BoxPrediction, scale: np.ndarray) -> list[dict[str, Any]]:
    boxes = found.boxes[0].float().cpu().numpy() * np.tile(scale, 2)
    rows = zip(boxes, found.scores[0].tolist(), found.labels[0].tolist(), strict=True)
    return [
        {"box": box.round(1).tolist(), "score": round(score, 4), "label": names[label]}
        for box, score, label in rows
    ]


def _points(
    names: Sequence[str], found: PointsPrediction, scale: np.ndarray
) -> dict[str, list[float]]:
    points = (found.points[0].float().cpu().numpy() * scale).round(1).tolist()
    scores = found.scores[0].tolist()
    return {
        name: [*point, round(score, 4)]
        for name, point, score in zip(names, points, scores, strict=True)
    }


def _masks(names: Sequence[str], found: MaskPrediction, small: Size) -> dict[str, str]:
    planes = found.probabilities[0].float().cpu().numpy()
    return {
        name: _png((_scaled(plane, small) * 255).round().astype(np.uint8))
        for name, plane in zip(names, planes, strict=True)
    }


def _scaled(pixels: np.ndarray, size: Size) -> np.ndarray:
    smaller = size[0] < pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _png(pixels: np.ndarray) -> str:
    """(H, W) or RGB (H, W, 3) uint8 -> base64."""
    ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels  # OpenCV has blue first
    return base64.b64encode(cv2.imencode(".png", ordered)[1].tobytes()).decode()
