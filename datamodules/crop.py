"""From the stored image to the part of it that a view shows: what becomes of annotations.

Shape letters: N boxes, K classes or points, H x W pixels of the stored image, S pixels of the
view's side. Coordinates count from the corner of the first pixel, as in `datamodules.annotations`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from ark.types import Kind
from datamodules.annotations import Boxes

MIN_VISIBLE = 0.1  # boxes of which less of the area is left are dropped


class Crop(NamedTuple):
    """A part of an image, in shares of its width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def place(self, kind: Kind, annotation: Any, stored: tuple[int, int], size: int) -> Any:
        """From pixels of the stored image, (H, W), to pixels of the S x S view of this part."""
        if kind == "detection":
            return self._boxes(annotation, stored, size)
        if kind == "segmentation":
            shown = [self._mask(mask, size) for mask in annotation.masks]
            return annotation._replace(masks=np.stack(shown))
        if kind == "points":
            origin, scale = self._frame(stored, size)
            points = (annotation - origin) * scale
            if self != WHOLE:  # there is nothing to see of what lies outside
                points[((points < 0) | (points > size)).any(axis=1)] = np.nan
            return points
        return annotation

    def _frame(self, stored: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the top left corner in stored pixels, and the view's pixels in each of them."""
        height, width = stored
        across, down = width * (self.right - self.left), height * (self.bottom - self.top)
        origin = np.array([width * self.left, height * self.top], np.float32)
        return origin, np.array([size / across, size / down], np.float32)

    def _boxes(self, annotation: Boxes, stored: tuple[int, int], size: int) -> Boxes:
        origin, scale = self._frame(stored, size)
        boxes = (annotation.boxes - np.tile(origin, 2)) * np.tile(scale, 2)
        if self == WHOLE:
            return annotation._replace(boxes=boxes)
        clipped = boxes.clip(0, size)
        seen = _area(clipped)
        keep = (seen > 0) & (seen >= MIN_VISIBLE * _area(boxes))
        return annotation._replace(boxes=clipped[keep], labels=annotation.labels[keep])

    def _mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        if self == WHOLE:
            # plain INTER_NEAREST would shift the masks by half a pixel against the image
            return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        middles = (np.arange(size) + 0.5) / size
        height, width = mask.shape
        rows = ((self.top + middles * (self.bottom - self.top)) * height).astype(np.intp)
        columns = ((self.left + middles * (self.right - self.left)) * width).astype(np.intp)
        return mask[rows][:, columns]


WHOLE = Crop()


def _area(boxes: np.ndarray) -> np.ndarray:
    """(N,) of (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
