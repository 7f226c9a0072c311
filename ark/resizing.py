"""The one way in which images become square: training, `ark predict` and published models alike."""

from __future__ import annotations

import cv2
import numpy as np


def resize(image: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """(h, w, C) -> (size, size, C), without regard to the aspect ratio, as the papers do.

    Args:
        out: (size, size), that a gray image may be resized into.
    """
    if image.shape[:2] == (size, size):
        return image
    # below a factor of two bilinear skips no pixel either, in a fifth of the time
    shrink = max(image.shape[:2]) / size
    method = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
    room = out if image.shape[2] == 1 else None
    return cv2.resize(image, (size, size), room, interpolation=method).reshape(size, size, -1)
