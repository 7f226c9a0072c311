"""Classes that nobody looked for on an image teach nothing there (`DetectionTarget.known`).

Their logits are replaced by a constant before the loss sees them: a sigmoid of it is exactly 0 and
so is its loss as a negative, a softmax is one over the other classes, and no gradient passes.
Boxes of such a class are left out of the truth.

Shape letters: see `ark.types`; C >= K channels of a class layer, background classes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ark.types import ConfigError, DetectionTarget

NEVER = -1e4  # a logit; a half-precision number holds it


def unknown_classes(target: DetectionTarget) -> Tensor | None:
    """(B, K) bool, True where nobody looked; None where everything was looked for."""
    if target.known is None or bool(target.known.all()):
        return None
    return ~target.known


def usable(target: DetectionTarget, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Each image's boxes (N, 4) and labels (N,), without boxes that have no area (they encode to
    infinity), that lie outside the image, and of classes that nobody looked for there.

    Args:
        size: (H, W) of the image.
    """
    images = []
    for n, (boxes, labels) in enumerate(zip(target.boxes, target.labels, strict=True)):
        use = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        use &= (boxes[:, :2] < boxes.new_tensor(size[::-1])).all(dim=1)
        use &= (boxes[:, 2:] > 0).all(dim=1)
        if target.known is not None:
            use &= target.known[n, labels]
        images.append((boxes[use], labels[use]))
    return images


def silence(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """(..., C) class logits with a constant where `unknown`, (B, K), forbids a class.

    Args:
        logits: (..., B, Q, C), or (R, C) with an `unknown` of (R, K).
    """
    if unknown is None:
        return logits
    mask = F.pad(unknown, (0, logits.shape[-1] - unknown.shape[1]))
    return logits.masked_fill(mask if logits.ndim == 2 else mask[:, None], NEVER)


def silence_maps(head: Any, levels: list[Tensor], unknown: Tensor | None) -> list[Tensor]:
    """The same for a dense head's class maps, L times (B, A * C, h, w), A anchors a cell.

    Raises:
        ConfigError: the head's output is laid out otherwise.
    """
    if unknown is None:
        return levels
    channels = getattr(head, "cls_out_channels", 0)
    anchors = getattr(head, "num_base_priors", 1)
    if any(level.shape[1] != anchors * channels for level in levels):
        raise cannot_leave_out(type(head).__name__)
    # TOOD's head gives probabilities
    never = 0.0 if getattr(getattr(head, "loss_cls", None), "activated", False) else NEVER
    mask = F.pad(unknown, (0, channels - unknown.shape[1])).repeat(1, anchors)[..., None, None]
    return [level.masked_fill(mask, never) for level in levels]


@contextmanager
def silenced_rois(roi_head: Any, unknown: Tensor) -> Iterator[None]:
    """Inside, the class layers of a two-stage detector's second stage know no forbidden class.

    Every stage first cuts its regions out of the maps; they say which image each belongs to.
    """
    images: list[Tensor] = []

    def note_images(module: Any, inputs: tuple[Any, ...]) -> None:
        images[:] = [inputs[1][:, 0].long()]

    def silence_scores(module: Any, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return silence(output[0], unknown[images[0]]), *output[1:]

    extractors, box_heads = _stages(roi_head.bbox_roi_extractor), _stages(roi_head.bbox_head)
    hooks = [extractor.register_forward_pre_hook(note_images) for extractor in extractors]
    hooks += [box_head.register_forward_hook(silence_scores) for box_head in box_heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cannot_leave_out(what: str) -> ConfigError:
    return ConfigError(
        f"mmdet's {what} cannot leave out classes that nobody looked for on an image "
        "(`known` in the dataset's labels); take the detector dino, deformable_detr, faster_rcnn, "
        "atss, fcos or retinanet"
    )


def _stages(module: Any) -> list[Any]:
    return list(module) if isinstance(module, torch.nn.ModuleList) else [module]
