"""An upload's bytes -> the picture, decoded as `ark predict` decodes files, and upright."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ark.errors import ConfigError
from datamodules.imaging.guard import refusing
from datamodules.imaging.images import (
    Window,
    check_window,
    decode_image,
    image_format,
    image_size,
)

__all__ = ["PIXELS", "Picture", "Window", "check_window", "read", "upright"]

PIXELS = 50_000_000  # of an image
WHERE = "image"  # what errors call it; who asked knows the file's name
_ORIENTATION = 274  # EXIF's tag
_PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}  # a turned TIFF is refused by its decoder


@dataclass
class Picture:
    """
    Args:
        pixels: (H, W, 1 or 3) uint8, gray or RGB, upright.
        turned: whether EXIF's orientation made it differ from the pixels that are stored.
    """

    pixels: np.ndarray
    turned: bool


def read(data: bytes, window: Window = "auto") -> Picture:
    """
    Args:
        data: a file's: JPEG, PNG, WebP, TIFF or DICOM.
        window: how pixels of more than 8 bits become 8: see `datamodules.imaging.images`.

    Raises:
        ConfigError: none of these, damaged, or more than PIXELS pixels, which is found out before
            anything is unpacked.
    """
    height, width = image_size(data, WHERE)
    if height * width > PIXELS:
        raise ConfigError(
            f"{WHERE}: {width} x {height} pixels; expected at most {PIXELS:,} pixels; make it "
            "smaller first"
        )
    orientation = _orientation(data)
    pixels = upright(decode_image(data, WHERE, window=window), orientation)
    return Picture(pixels, orientation != 1)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as a viewer shows it.

    Args:
        orientation: EXIF's, 1 to 8: 1 is upright; from 5 on rows are columns.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else None)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else None)
    return np.ascontiguousarray(pixels[rows, columns])


def _orientation(data: bytes) -> int:
    """1 to 8; 1 where none is given or EXIF is broken, as browsers do. No pixel is decoded."""
    name = _PILLOW.get(image_format(data, WHERE))
    if name is None:
        return 1
    try:
        with refusing(WHERE), Image.open(io.BytesIO(data), formats=[name]) as picture:
            exif = Image.Exif()
            exif.load(picture.info.get("exif") or b"")
            found = exif.get(_ORIENTATION, 1)
    except ConfigError:
        return 1
    return found if found in range(1, 9) else 1
