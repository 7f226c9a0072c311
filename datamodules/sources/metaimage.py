"""MetaImage (.mha) -> PNG or TIFF with the very same pixel values; shards hold no MetaImages.

The format: lines `key = value`, the last of them `ElementDataFile = LOCAL`, then the pixels, raw or
deflated (https://itk.org/Wiki/ITK/MetaIO/Documentation).
"""

from __future__ import annotations

import io
import math
import zlib

import cv2
import numpy as np
from PIL import Image

from ark.types import ConfigError
from datamodules.imaging.guard import check_pixels

_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LAST = b"ElementDataFile"
_LONGEST = 2**16  # bytes of a header


def from_metaimage(data: bytes, where: str) -> bytes:
    """The gray image as PNG (whole numbers from 0 to 65535) or TIFF (all others, as float32).

    Raises:
        ConfigError: pixels elsewhere than in the file, of several slices or channels, of an unknown
            type, or fewer or more than the header says.
    """
    header, start = _header(data, where)
    height, width = _size(header, where)
    kind = header.get("ElementType")
    if kind not in _TYPES or header.get("ElementNumberOfChannels", "1") != "1":
        raise ConfigError(
            f"{where}: ElementType is {kind!r} of {header.get('ElementNumberOfChannels', '1')} "
            f"channels; expected one of {list(_TYPES)} of one"
        )
    big = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "")) == "True"
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")
    wanted = height * width * dtype.itemsize
    pixels = data[start:]
    if header.get("CompressedData") == "True":
        pixels = _inflated(pixels, wanted, where)
    if len(pixels) != wanted:
        raise ConfigError(
            f"{where}: {len(pixels)} bytes of pixels for {width}x{height} {kind}; expected "
            f"{wanted}. Download it again"
        )
    return _encoded(np.frombuffer(pixels, dtype).reshape(height, width), where)


def _header(data: bytes, where: str) -> tuple[dict[str, str], int]:
    at = data.find(_LAST, 0, _LONGEST)
    end = data.find(b"\n", at) + 1
    if at < 0 or not end:
        raise ConfigError(f"{where}: no MetaImage: no line {_LAST.decode()!r}; expected a .mha")
    lines = data[:end].decode("ascii", "replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    header = {key.strip(): value.strip() for key, value in pairs}
    if header[_LAST.decode()] != "LOCAL":
        raise ConfigError(
            f"{where}: its pixels are in {header[_LAST.decode()]!r}; expected them in the file "
            "itself (LOCAL), save it as .mha"
        )
    return header, end


def _size(header: dict[str, str], where: str) -> tuple[int, int]:
    try:
        sides = [int(side) for side in header["DimSize"].split()]
    except (KeyError, ValueError):
        sides = []
    if len(sides) < 2 or min(sides) < 1 or math.prod(sides[2:]) != 1:
        raise ConfigError(
            f"{where}: DimSize is {header.get('DimSize')!r}; expected width and height of one image"
        )
    return check_pixels(sides[1], sides[0], where)


def _inflated(data: bytes, wanted: int, where: str) -> bytes:
    """At most one byte more than `wanted`, whatever the data would inflate to."""
    try:
        return zlib.decompressobj().decompress(data, wanted + 1)
    except zlib.error as error:
        raise ConfigError(f"{where}: its pixels cannot be inflated ({error})") from error


def _encoded(pixels: np.ndarray, where: str) -> bytes:
    if pixels.dtype.kind in "ui" and pixels.min() >= 0 and pixels.max() < 2**16:
        kind = np.uint8 if pixels.dtype.itemsize == 1 else np.uint16
        return cv2.imencode(".png", pixels.astype(kind))[1].tobytes()
    single = pixels.astype(np.float32)
    if not np.array_equal(single, pixels):
        raise ConfigError(f"{where}: its pixels do not fit into 32-bit floats; save it with fewer")
    buffer = io.BytesIO()
    Image.fromarray(single).save(buffer, format="TIFF")
    return buffer.getvalue()
