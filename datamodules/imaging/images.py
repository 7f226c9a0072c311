"""Encoded images -> arrays; what cannot be kept exactly is refused, never guessed.

JPEG, PNG, WebP, TIFF and DICOM, told apart by their first bytes. Pixels of more than 8 bits become
8 bits through a window:

    auto              header for DICOM, minmax for the others
    header            the file's own window (DICOM); minmax where it has none
    minmax            this image's lowest and highest value
    percentile        its 1st and 99th percentile
    full              the range of the file's type (DICOM: of BitsStored, after the rescale)
    [low, high]       these values, in the file's (rescaled) units

8-bit files are kept as they are; only their own DICOM window counts. Bytes from a stranger end as
an array or as a ConfigError: see `datamodules.imaging.guard`.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from ark.types import ConfigError
from datamodules.imaging import png
from datamodules.imaging.dicom import decode_dicom, dicom_size
from datamodules.imaging.guard import MAX_PIXELS, check_pixels, refused, refusing
from datamodules.imaging.tiff import decode_tiff, tiff_size
from datamodules.imaging.windowing import Meaning, Window, check_window, to_uint8

__all__ = [
    "MAX_PIXELS",
    "Format",
    "Window",
    "check_window",
    "decode_image",
    "encode_jpeg",
    "encode_png",
    "image_format",
    "image_size",
]

Format = Literal["jpg", "png", "webp", "tif", "dcm"]
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def image_format(data: bytes, where: str) -> Format:
    """The format, by the first bytes and not by the file's name.

    Raises:
        ConfigError: none of the five.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(png.SIGNATURE):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data[128:132] == b"DICM":  # before TIFF, since a DICOM's preamble may be a TIFF's header
        return "dcm"
    if data[:4] in _TIFF:
        return "tif"
    raise ConfigError(
        f"{where}: begins with {data[:8]!r}; neither JPEG, PNG, WebP, TIFF nor DICOM (with its "
        "preamble). Convert the image to one of them"
    )


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) in pixels, from the header; no pixel is decoded.

    Raises:
        ConfigError: a broken header, more than `MAX_PIXELS` pixels, or several frames.
    """
    kind = image_format(data, where)
    if kind == "jpg":  # by far the most frequent: nothing is done for it that it does not need
        try:
            return _jpeg_header(data, where)[0]
        except Exception as error:
            raise refused(error, where) from error
    with refusing(where):
        if kind == "png":
            header = png.png_header(data, where)
            return header.height, header.width
        if kind == "webp":
            return _webp_size(data, where)
        if kind == "tif":
            return tiff_size(data, where)
        return dicom_size(data, where)


def decode_image(
    data: bytes, where: str, *, min_side: int = 0, window: Window = "auto"
) -> np.ndarray:
    """Decodes an image to (H, W, C) uint8; C is 1 for a gray file and 3, RGB, for a colour one.

    JPEGs give the very pixels that Pillow gives. EXIF orientation is not applied, since boxes and
    masks are drawn on the stored pixels. WebP knows no gray.

    Args:
        where: names the file in errors.
        min_side: pixels; where it is above 0, a JPEG may come smaller, each side still at least
            min(min_side, its stored length). Other formats ignore it.
        window: how pixels of more than 8 bits become 8 bits; see above.

    Raises:
        ConfigError: broken data, more than `MAX_PIXELS` pixels, several frames, transparency.
    """
    kind, window = image_format(data, where), check_window(window, where)
    if kind == "jpg":
        try:
            return _decode_jpeg(data, where, min_side)
        except Exception as error:
            raise refused(error, where) from error
    with refusing(where):
        if kind == "png":
            pixels = _decode_png(data, where, window)
        elif kind == "webp":
            pixels = _decode_webp(data, where)
        elif kind == "tif":
            pixels = decode_tiff(data, where, window)
        else:
            pixels = decode_dicom(data, where, window)
    return pixels if pixels.ndim == 3 else pixels[..., None]


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


def _jpeg_header(data: bytes, where: str) -> tuple[tuple[int, int], str]:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    return check_pixels(height, width, where), colorspace


def _decode_jpeg(data: bytes, where: str, min_side: int) -> np.ndarray:
    _, colorspace = _jpeg_header(data, where)
    if colorspace in ("CMYK", "YCCK"):
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            return np.array(picture.convert("RGB"))
    wanted = "GRAY" if colorspace == "Gray" else "RGB"
    # scaling by less than 2 takes longer than decoding all of it (tools/bench_decoders.py)
    return simplejpeg.decode_jpeg(
        data, wanted, min_height=min_side, min_width=min_side, min_factor=2 if min_side > 0 else 1
    )


def _decode_png(data: bytes, where: str, window: Window) -> np.ndarray:
    pixels = png.png_pixels(data, where)
    if pixels.dtype == np.uint8:
        return pixels
    return to_uint8(pixels, window, Meaning((0, 65535)), where)


def _webp_size(data: bytes, where: str) -> tuple[int, int]:
    """Read by hand, since Pillow allocates the whole canvas to tell its size."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 2:
            raise ConfigError(f"{where}: an animated WebP; save the one frame you mean")
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return check_pixels(height, width, where)


def _decode_webp(data: bytes, where: str) -> np.ndarray:
    size = _webp_size(data, where)
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
        if (picture.height, picture.width) != size:
            raise ConfigError(f"{where}: the WebP has two sizes and cannot be decoded; replace it")
        if picture.mode == "RGBA":
            png.check_opaque(np.asarray(picture.getchannel("A")), where)
        return np.array(picture.convert("RGB"))
