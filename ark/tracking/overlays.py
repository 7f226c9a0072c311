"""Boxes and masks as W&B draws them over an image: layers that a viewer switches on and off.

Shape letters: see `ark.types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ark.types import (
    BoxPrediction,
    DetectionTarget,
    MaskPrediction,
    Prediction,
    SegmentationTarget,
    Target,
)

LEAST_SCORE, MOST_BOXES = 0.05, 50  # the viewer has a slider for the rest
MOST_CLASSES = 255  # that the bytes of a mask can tell apart
Shown = Target | Prediction


def layers(shown: Mapping[str, Shown], classes: Sequence[str]) -> dict[str, Any] | None:
    """Arguments of `wandb.Image`, of batches of one image.

    Args:
        shown: by name of the layer: the truth, and what the networks said.
        classes: of the task.

    Returns:
        None: neither boxes nor masks; the head draws its own picture.
    """
    if all(isinstance(one, DetectionTarget | BoxPrediction) for one in shown.values()):
        labels = dict(enumerate(classes))
        found = {name: _boxes(one, classes) for name, one in shown.items()}
        return {"boxes": {n: {"box_data": b, "class_labels": labels} for n, b in found.items()}}
    if all(isinstance(one, SegmentationTarget | MaskPrediction) for one in shown.values()):
        return {"masks": _mask_layers(shown, classes)}
    return None


def _boxes(shown: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    boxes, labels = _numpy(shown.boxes[0]), _numpy(shown.labels[0])
    scores = _numpy(shown.scores[0]) if isinstance(shown, BoxPrediction) else None
    found: list[dict[str, Any]] = []
    for n, corners in enumerate(boxes.tolist()):
        score = 1.0 if scores is None else float(scores[n])
        # a network that diverged: W&B knows no NaN
        if score >= LEAST_SCORE and np.isfinite(corners).all() and len(found) < MOST_BOXES:
            text = classes[int(labels[n])]
            box = {
                "position": dict(zip(("minX", "minY", "maxX", "maxY"), corners, strict=True)),
                "domain": "pixel",
                "class_id": int(labels[n]),
                "box_caption": text if scores is None else f"{text} {score:.2f}",
            }
            found.append(box if scores is None else {**box, "scores": {"score": score}})
    return found


def _mask_layers(shown: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A pixel of a layer has one class (0: none), but masks may overlap: what finds no room in the
    first layer of its name goes to a second one, and so on."""
    names = dict(enumerate(["none", *classes]))
    found: dict[str, Any] = {}
    for name, one in shown.items():
        for number, layer in enumerate(_packed(_masks(one))):
            title = name if number == 0 else f"{name} {number + 1}"
            found[title] = {"mask_data": layer, "class_labels": names}
    return found


def _packed(masks: np.ndarray) -> list[np.ndarray]:
    """(K, H, W) bool -> as few (H, W) uint8 as come of taking the classes in their order, of k + 1
    where class k is; at least one."""
    packed = [np.zeros(masks.shape[1:], np.uint8)]
    for k, mask in enumerate(masks):
        free = next((layer for layer in packed if not layer[mask].any()), None)
        if free is None:
            free = np.zeros(masks.shape[1:], np.uint8)
            packed.append(free)
        free[mask] = k + 1
    return packed


def _masks(shown: SegmentationTarget | MaskPrediction) -> np.ndarray:
    """(K, H, W) bool: of several raters what at least half of them drew."""
    inside = shown.masks() if isinstance(shown, MaskPrediction) else shown.share() >= 0.5
    return inside[0, :MOST_CLASSES].cpu().numpy()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
