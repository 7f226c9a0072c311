"""Predictions of one image as plain JSON."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from ark.errors import ConfigError
from ark.published.model import Model

LONGEST = 1024  # pixels of a mask's longer side; larger ones are made smaller
# of an image: a mask is computed at its own size, about 8 bytes a pixel and class (25 MP, measured)
PIXELS = 50_000_000


def describe(model: Model) -> dict[str, Any]:
    """What `GET /api/model` says: name, input and tasks with their classes."""
    facts = model.facts
    return {
        "name": facts.name,
        "which": facts.which,
        "backbone": facts.architecture["backbone"]["name"],
        "image_size": model.image_size,
        "license": facts.license,
        "tasks": {
            key: {"kind": task.kind, "classes": list(task.classes)}
            for key, task in model.tasks.items()
        },
    }


def answer(model: Model, image: bytes, tasks: list[str] | None) -> dict[str, Any]:
    """What `POST /api/predict` says of an image's file.

    Returns:
        By task {"kind", and one of "classes" {name: probability}, "values" {name: number}, "boxes"
        [{"box": [x1, y1, x2, y2] in pixels of the file, "score", "label"}], "masks" {name: a PNG
        of probabilities, 0 to 255, as base64; the whole image, its longer side at most LONGEST},
        "points" {name: [x, y, score]}}.

    Raises:
        ConfigError: no image, one of more than PIXELS pixels, or no such task.
    """
    _check_pixels(image)
    found = model([image], tasks)
    return {
        key: {"kind": model.tasks[key].kind} | _plain(model, key, o) for key, o in found.items()
    }


def _check_pixels(image: bytes) -> None:
    """Before anything is unpacked; what is no image at all is left to the model to say.

    Raises:
        ConfigError: more than PIXELS pixels.
    """
    size = ""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height <= PIXELS:
                return
            size = f"{opened.width} x {opened.height} pixels; "
    except Image.DecompressionBombError:  # Pillow's own limit, which says no size
        pass
    except (OSError, ValueError, SyntaxError):
        return
    raise ConfigError(f"image: {size}expected at most {PIXELS:,} pixels; make it smaller first")


def _plain(model: Model, key: str, output: dict[str, Any]) -> dict[str, Any]:
    kind = model.tasks[key].kind
    if kind == "detection":
        rows = zip(output["boxes"][0], output["scores"][0], output["labels"][0], strict=True)
        return {
            "boxes": [
                {"box": _numbers(box, 1), "score": round(float(score), 4), "label": label}
                for box, score, label in rows
            ]
        }
    if kind == "segmentation":
        return {"masks": {name: _png(masks[0]) for name, masks in output.items()}}
    if kind == "points":
        return {"points": {name: _numbers(points[0], 3) for name, points in output.items()}}
    name = "values" if kind == "values" else "classes"
    return {name: {label: round(float(value[0]), 5) for label, value in output.items()}}


def _numbers(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _png(mask: Tensor) -> str:
    pixels: np.ndarray = (mask.float().cpu().numpy() * 255).round().astype(np.uint8)
    scale = LONGEST / max(pixels.shape)
    if scale < 1:
        size = [max(1, round(scale * side)) for side in pixels.shape[::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()
