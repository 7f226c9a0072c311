"""Colours and marks that every picture of Ark shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers, bright enough on gray radiographs.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF")
TINT = 0.25  # how opaque a mask of value 1 is
# by whether an outline is broken
LINES: dict[bool, Literal["solid", "dashed"]] = {False: "solid", True: "dashed"}


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


def draw_masks(axes: Axes, masks: np.ndarray, classes: Sequence[str], broken: bool = False) -> None:
    """Tints and outlines `masks`, (K, H, W) in 0..1; overlaps show both colours.

    The tint is as strong as the value (the share of the raters), the outline lies at 0.5. Once the
    palette is used up its colours come again, hatched.

    Args:
        broken: outlines of broken lines, to tell the truth from a prediction.
    """
    masks = np.clip(masks.astype(np.float32), 0, 1)
    present = [k for k in range(len(classes)) if masks[k].any()]
    for k in present:
        _tint(axes, masks[k], k)
    for k in present:  # over every tint
        _outline(axes, masks[k] >= 0.5, k, broken)
    if present:
        _legend(axes, present, classes, broken)


def _tint(axes: Axes, mask: np.ndarray, k: int) -> None:
    from matplotlib.colors import to_rgb

    tint = np.zeros((*mask.shape, 4), np.float32)
    tint[..., :3] = to_rgb(colour(k))
    tint[..., 3] = TINT * mask
    axes.imshow(tint, interpolation="nearest")


def _outline(axes: Axes, inside: np.ndarray, k: int, broken: bool) -> None:
    from matplotlib.patheffects import Normal, Stroke

    # A rim of nothing closes the outline of a mask that touches the border of the image.
    rim = np.pad(inside, 1).astype(np.float32)
    rows, columns = (np.arange(-1, side + 1).clip(-0.5, side - 0.5) for side in inside.shape)
    if _hatch(k):
        filled = axes.contourf(columns, rows, rim, [0.5, 1.5], colors="none", hatches=[_hatch(k)])
        filled.set(edgecolor=colour(k), linewidth=0)
    lines = axes.contour(
        columns, rows, rim, [0.5], colors=[colour(k)], linewidths=1.0, linestyles=LINES[broken]
    )
    lines.set_path_effects([Stroke(linewidth=2.0, foreground="black", alpha=0.5), Normal()])


def _legend(axes: Axes, present: Sequence[int], classes: Sequence[str], broken: bool) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    patches = [
        Patch(
            facecolor=to_rgba(colour(k), 2 * TINT),
            edgecolor=colour(k),
            linestyle=LINES[broken],
            hatch=_hatch(k),
            label=classes[k],
        )
        for k in present
    ]
    columns = 1 + (len(patches) > 6)
    legend = axes.legend(
        handles=patches,
        fontsize=5,
        loc="lower right",
        ncols=columns,
        facecolor="black",
        edgecolor="none",
        framealpha=0.6,
        labelcolor="white",
        borderpad=0.3,
        labelspacing=0.25,
        handlelength=1.6,
    )
    legend.set_zorder(10)


def _hatch(k: int) -> str | None:
    rounds = k // len(PALETTE)
    return None if rounds == 0 else ("////", "....")[(rounds - 1) % 2]
