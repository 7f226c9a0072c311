"""TIFF: one page, gray or colour, of 1 to 32 bits; turned and multi-page files are refused."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL.TiffImagePlugin import TiffImageFile

from ark.types import ConfigError
from datamodules.imaging.guard import check_pixels
from datamodules.imaging.png import check_opaque
from datamodules.imaging.windowing import Meaning, Window, to_uint8

_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _PLANES, _FORMAT = 258, 259, 262, 274, 284, 339
_WHITE_IS_ZERO, _APART, _NONE = 0, 2, 1  # values of _PHOTOMETRIC, _PLANES and _COMPRESSION
_UNSIGNED, _SIGNED = 1, 2  # values of _FORMAT
_stderr = threading.Lock()
_GRAY_MODES = ("1", "L", "LA")  # Pillow's
_COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
_DEEP_MODES = ("I;16", "I;16B", "I", "F")


def tiff_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) from the header."""
    with _open(data, where) as picture:
        return picture.height, picture.width


def decode_tiff(data: bytes, where: str, window: Window) -> np.ndarray:
    """Decodes to (H, W) gray or (H, W, 3) RGB uint8; deeper pixels go through `window`.

    Pillow decodes; OpenCV would return some damaged files as if they were whole.

    Raises:
        ConfigError: several pages, an orientation, transparency, or an unusual kind of pixel.
    """
    with _open(data, where) as picture, _quiet():
        mode, tags = picture.mode, picture.tag_v2
        bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (_UNSIGNED,)))
        stored = picture.height * picture.width * sum(tags.get(_BITS, (1,))) // 8
        if tags.get(_COMPRESSION, _NONE) == _NONE and stored > len(data):
            raise ConfigError(f"{where}: the TIFF ends early and cannot be decoded; replace it")
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        if bits == 16 and mode in ("RGB", "RGBA") and tags.get(_PLANES) != _APART:
            return to_uint8(_deep_colour(data, where), window, Meaning((0, 65535)), where)
        if bits > 8 and mode in _DEEP_MODES:
            pixels = _deep_gray(picture, bits, kind)
            return to_uint8(pixels, window, Meaning(_span(bits, kind), inverted=inverted), where)
        if bits > 8 or kind != _UNSIGNED or mode not in _GRAY_MODES + _COLOUR_MODES:
            raise ConfigError(
                f"{where}: TIFF of mode {mode!r}, {bits} bits, sample format {kind}, planar "
                f"configuration {tags.get(_PLANES, 1)}; save it as gray or RGB of 8 or 16 bits"
            )
        if mode in ("LA", "RGBA"):
            check_opaque(np.asarray(picture.getchannel("A")), where)
        return np.array(picture.convert("L" if mode in _GRAY_MODES else "RGB"))


def _open(data: bytes, where: str) -> TiffImageFile:
    picture = TiffImageFile(io.BytesIO(data))  # Image.open would refuse bombs in its own words
    check_pixels(picture.height, picture.width, where)
    if picture.is_animated:
        raise ConfigError(f"{where}: a TIFF of several pages; save the page you mean by itself")
    if picture.tag_v2.get(_ORIENTATION, 1) != 1:
        raise ConfigError(
            f"{where}: TIFF orientation {picture.tag_v2[_ORIENTATION]}; save the image upright, or "
            "boxes and masks may not fit it"
        )
    return picture


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's libtiff prints what Pillow then raises, and only the descriptor can stop it."""
    with _stderr:  # two threads at once would keep each other's
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _deep_gray(picture: TiffImageFile, bits: int, kind: int) -> np.ndarray:
    """(H, W) of the file's own type; Pillow widens and reinterprets some."""
    pixels = np.asarray(picture)
    if picture.mode != "I":
        return pixels
    if bits <= 16:
        return pixels.astype(np.int16 if kind == _SIGNED else np.uint16)
    return pixels if kind == _SIGNED else pixels.view(np.uint32)


def _deep_colour(data: bytes, where: str) -> np.ndarray:
    """(H, W, 3) uint16 RGB; Pillow would cut it to 8 bits without a word."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ConfigError(f"{where}: the 16-bit TIFF cannot be decoded; save it as PNG")
    if pixels.shape[2] == 4:
        check_opaque(pixels[..., 3], where)
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _span(bits: int, kind: int) -> tuple[float, float] | None:
    if kind == _SIGNED:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return (0.0, 2.0**bits - 1) if kind == _UNSIGNED else None
