"""PNG: the header, the pixels as they are stored, and nothing of what else a PNG may carry."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ark.types import ConfigError
from datamodules.imaging.guard import check_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, PALETTE, GRAY_ALPHA = 0, 3, 4  # colour types; 2 is RGB, 6 RGBA
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class PngHeader(NamedTuple):
    height: int  # pixels
    width: int
    depth: int  # bits a channel or palette index: 1, 2, 4, 8 or 16
    colour: int  # type


def png_header(data: bytes, where: str) -> PngHeader:
    """The header, checked for its size.

    Raises:
        ConfigError: no PNG, or too many pixels.
    """
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        raise ConfigError(f"{where}: not a PNG with a whole header; replace it")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    check_pixels(height, width, where)
    return PngHeader(height, width, depth, colour)


def png_pixels(data: bytes, where: str) -> np.ndarray:
    """Decodes to (H, W) gray or (H, W, 3) RGB, uint8 or uint16; palettes become RGB.

    OpenCV: the very pixels of Pillow, a quarter faster, as torchvision (tools/bench_decoders.py).

    Raises:
        ConfigError: damaged, animated, too large, or with a transparent pixel.
    """
    header = png_header(data, where)
    # of gray and RGB, tRNS only says which value to leave out on a page; the pixels are all there
    kinds = (*_PIXELS, b"tRNS") if header.colour == PALETTE else _PIXELS
    lean = np.frombuffer(_lean(data, where, kinds), np.uint8)
    pixels = cv2.imdecode(lean, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ConfigError(f"{where}: the PNG cannot be decoded, its data is damaged; replace it")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        check_opaque(pixels[..., 3], where)
    if header.colour in (GRAY, GRAY_ALPHA):
        return pixels if pixels.ndim == 2 else pixels[..., 0]
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(pixels, code)


def png_indices(data: bytes, where: str) -> np.ndarray:
    """The palette indices of a palette PNG, (H, W) uint8."""
    png_header(data, where)
    # without its transparency, Pillow gives indices for every depth; OpenCV only gives colours
    with Image.open(io.BytesIO(_lean(data, where, _PIXELS)), formats=["PNG"]) as picture:
        return np.array(picture)


def check_opaque(alpha: np.ndarray, where: str) -> None:
    """ConfigError where a pixel is not fully opaque; `alpha` is of any shape, uint8 or uint16."""
    if int(alpha.min()) != np.iinfo(alpha.dtype).max:
        raise ConfigError(
            f"{where}: the image has transparent pixels; flatten it on a background of your choice"
        )


def _lean(data: bytes, where: str, kinds: tuple[bytes, ...]) -> bytes:
    """The PNG with the chunks of `kinds` alone, each whole and with a right checksum.

    Texts, profiles and their decompression bombs are left unread; and what OpenCV would print to
    the terminal about a damaged file is found here.
    """
    view, at, kept = memoryview(data), len(SIGNATURE), [SIGNATURE]
    while kept[-1][4:8] != b"IEND":
        if at + 12 > len(data):
            raise ConfigError(f"{where}: the PNG ends early and cannot be decoded; replace it")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in (b"acTL", b"fdAT"):
            raise ConfigError(f"{where}: an animated PNG; save the one frame you mean as an image")
        checksum = int.from_bytes(view[end - 4 : end], "big")
        if end > len(data) or zlib.crc32(view[at + 4 : end - 4]) != checksum:
            raise ConfigError(
                f"{where}: chunk {kind!r} of the PNG is damaged, it cannot be decoded; replace it"
            )
        if kind in kinds:
            kept.append(view[at:end].tobytes())
        at = end
    return b"".join(kept)
