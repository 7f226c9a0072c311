"""Colours and marks that every picture of Ark shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers, bright enough on gray radiographs.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF")


def colour(index: int) -> str:
    """The colour of class `index`, the same in every picture."""
    return PALETTE[index % len(PALETTE)]


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Shows `image`, (H, W) or (H, W, 3) uint8, without ticks."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=7, loc="left")


def draw_boxes(
    axes: Axes,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> None:
    """Outlines `boxes`, (N, 4) xyxy in pixels of the image shown, each with its class and score."""
    from matplotlib.patches import Rectangle

    for n, (x1, y1, x2, y2) in enumerate(boxes):
        hue = colour(int(labels[n]))
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=hue, lw=1.2))
        text = classes[int(labels[n])] + ("" if scores is None else f" {scores[n]:.2f}")
        behind = {"facecolor": "black", "alpha": 0.6, "pad": 0.6, "edgecolor": "none"}
        axes.text(x1, y1, text, color=hue, fontsize=6, va="bottom", clip_on=True, bbox=behind)


def draw_masks(axes: Axes, masks: np.ndarray, classes: Sequence[str]) -> None:
    """Tints and outlines `masks`, (K, H, W) in 0..1; overlaps show both colours."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    present = [k for k in range(len(classes)) if masks[k].max() >= 0.5]
    for k in present:
        inside = masks[k] >= 0.5
        tint = np.zeros((*inside.shape, 4))
        tint[..., :3] = to_rgb(colour(k))
        tint[..., 3] = 0.3 * inside
        axes.imshow(tint)
        axes.contour(inside, levels=[0.5], colors=[colour(k)], linewidths=0.8)
    if present:
        patches = [Patch(color=colour(k), label=classes[k]) for k in present]
        axes.legend(handles=patches, fontsize=5, loc="lower right", framealpha=0.6)
