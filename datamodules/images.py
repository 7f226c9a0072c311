"""Encoded images and masks -> arrays; what cannot be kept exactly is refused, never guessed."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ark.types import ConfigError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # offset of the bit depth in the IHDR chunk, which always comes first
_EXACT_MODES = ("1", "L", "P", "RGB")


def image_format(data: bytes, where: str) -> str:
    """ "jpg" or "png", by the first bytes and not by the file's name.

    Raises:
        ConfigError: any other format.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(_PNG):
        return "png"
    raise ConfigError(f"{where}: neither JPEG nor PNG; convert the image to one of them")


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decodes an 8-bit JPEG or PNG to (H, W, 3) uint8 RGB; gray is repeated in the 3 channels.

    JPEGs give the very pixels that Pillow gives. EXIF orientation is not applied, since boxes and
    masks are drawn on the stored pixels.

    Raises:
        ConfigError: broken data, 16-bit pixels, or an alpha channel.
    """
    try:
        if image_format(data, where) == "jpg":
            return _decode_jpeg(data)
        return _decode_png(data, where)
    except ConfigError:
        raise
    except (ValueError, OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ConfigError(f"{where}: the image cannot be decoded ({error}); replace it") from error


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Decodes a binary mask to (H, W) uint8, 0 or 1.

    Raises:
        ConfigError: not a gray PNG, or more than two gray values.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            mode, mask = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ConfigError(f"{where}: the mask is no readable PNG ({error})") from error
    if mode not in ("1", "L"):
        raise ConfigError(f"{where}: the mask has mode {mode!r}; expected 8-bit gray, 0 and 255")
    inside = (mask > 0).astype(np.uint8)
    if not np.array_equal(inside * mask.max(), mask):
        values = np.unique(mask)
        raise ConfigError(
            f"{where}: the mask holds {len(values)} gray values ({values[:4].tolist()}...); "
            "expected 0 for outside and one other value for inside"
        )
    return inside


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes (H, W) uint8, or 0/1 bool as 0/255, to a gray PNG."""
    buffer = io.BytesIO()
    gray = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    Image.fromarray(gray).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(gray: np.ndarray, quality: int = 95) -> bytes:
    """Encodes (H, W) uint8 to a gray JPEG."""
    pixels = np.ascontiguousarray(gray)[..., None]
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY")


def _decode_jpeg(data: bytes) -> np.ndarray:
    colorspace = simplejpeg.decode_jpeg_header(data)[2]
    if colorspace == "Gray":
        return np.repeat(simplejpeg.decode_jpeg(data, "GRAY", strict=True), 3, axis=2)
    if colorspace in ("CMYK", "YCCK"):
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


def _decode_png(data: bytes, where: str) -> np.ndarray:
    # Pillow cuts 16-bit RGB to 8 bits without a word, so the header is asked, not Pillow's mode
    if data[_PNG_BIT_DEPTH] == 16:
        raise ConfigError(
            f"{where}: a 16-bit PNG; only 8-bit images are read. Window it to 8 bits first"
        )
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        if picture.mode in ("LA", "RGBA") and picture.getchannel("A").getextrema() == (255, 255):
            return np.array(picture.convert("RGB"))
        if picture.mode not in _EXACT_MODES:
            raise ConfigError(f"{where}: PNG of mode {picture.mode!r}; expected gray or RGB, 8-bit")
        return np.array(picture.convert("RGB"))
