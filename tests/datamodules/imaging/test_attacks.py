"""Bytes from a stranger: every format ends as an array or a ConfigError, quickly and quietly."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from encoding import encoded
from PIL import Image
from pydicom.data import get_testdata_file

from ark.types import ConfigError
from datamodules.imaging.images import MAX_PIXELS, decode_image, image_format, image_size
from datamodules.imaging.masks import decode_label_map, decode_mask

SMOOTH = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8), (0, 0), 2
)
DEEP = SMOOTH.astype(np.uint16) * 200


def opencv(pixels: np.ndarray, ending: str) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def real(name: str) -> bytes:
    return Path(get_testdata_file(name, download=False)).read_bytes()


FILES = {
    "jpeg": encoded(SMOOTH, format="JPEG"),
    "jpeg gray progressive": encoded(SMOOTH[..., 0], format="JPEG", progressive=True),
    "jpeg cmyk": encoded(Image.fromarray(SMOOTH).convert("CMYK"), format="JPEG"),
    "png": encoded(SMOOTH, format="PNG"),
    "png gray": encoded(SMOOTH[..., 0], format="PNG"),
    "png palette": encoded(Image.fromarray(SMOOTH).quantize(16), format="PNG"),
    "png 16": opencv(DEEP[..., 0], ".png"),
    "webp": encoded(SMOOTH, format="WEBP"),
    "webp lossless": encoded(SMOOTH, format="WEBP", lossless=True, exif=b"Exif\0\0ab"),
    "tiff": encoded(SMOOTH, format="TIFF"),
    "tiff lzw": encoded(SMOOTH, format="TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(SMOOTH, format="TIFF", compression="jpeg"),
    "tiff float": encoded(SMOOTH[..., 0].astype(np.float32), format="TIFF"),
    "tiff 16 colour": opencv(DEEP, ".tif"),
    "dicom": real("MR_small.dcm"),
    "dicom rle": real("MR_small_RLE.dcm"),
    "dicom jpeg 2000": real("MR_small_jp2klossless.dcm"),
    "dicom jpeg": real("SC_rgb_dcmtk_+eb+cr.dcm"),
    "dicom colour": real("SC_rgb_small_odd.dcm"),
    "dicom jpeg-ls": real("JPEGLSNearLossless_16.dcm"),
}


def attack(data: bytes) -> None:
    """Every decoder on `data`: it must give an array or raise a ConfigError."""
    for decode in (decode_image, decode_mask, decode_label_map):
        with contextlib.suppress(ConfigError):
            assert isinstance(decode(data, "x"), np.ndarray)
    size = pixels = None
    with contextlib.suppress(ConfigError):
        size = image_size(data, "x")
    with contextlib.suppress(ConfigError):
        pixels = decode_image(data, "x", min_side=8)
    if pixels is not None:
        assert size is not None, "an image without a size"
        assert pixels.shape[0] <= size[0]
        assert pixels.shape[1] <= size[1]


@pytest.fixture
def quiet(capfd, caplog):
    """Nothing may reach the terminal: no warning, no log line, no print of a C library."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read(name, quiet):
    assert decode_image(FILES[name], name).size > 0


@pytest.mark.parametrize("name", FILES)
def test_truncated_at_every_64th_byte(name, quiet):
    data = FILES[name]
    for length in range(0, len(data), 64):
        attack(data[:length])


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("dicom")])
def test_a_file_without_its_end_is_never_an_image(name, quiet):
    data = FILES[name]
    for length in range(0, len(data) - 64, 64):
        with pytest.raises(ConfigError):
            decode_image(data[:length], "x")


@pytest.mark.parametrize("name", FILES)
def test_200_random_bytes_changed(name, quiet):
    rng = random.Random(name)
    for number in range(200):
        data = bytearray(FILES[name])
        end = len(data) if number % 2 else min(len(data), 400)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(end)] = rng.randrange(256)
        attack(bytes(data))


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
@pytest.mark.parametrize("length", [0, 1, 20, 500])
def test_only_a_signature(start, length, quiet):
    rng = np.random.default_rng(length)
    for fill in (bytes(length), b"\xff" * length, rng.bytes(length)):
        attack(start + fill)
        attack(b"II*\0" + fill)
        attack(bytes(128) + b"DICM" + fill)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(FILES["jpeg"])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(width: int, height: int) -> bytes:
    data = FILES["tiff"]
    for tag, old, new in ((256, 32, width), (257, 24, height)):
        for kind in (3, 4):
            entry = struct.pack("<HHII", tag, kind, 1, old)
            data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, new))
    return data


def dicom_of(width: int, height: int) -> bytes:
    rows, columns = b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"
    data = FILES["dicom"].replace(rows + b"\x40\x00", rows + struct.pack("<H", height))
    return data.replace(columns + b"\x40\x00", columns + struct.pack("<H", width))


@pytest.mark.parametrize(
    ("data", "stated"),
    [
        (png_of(100_000, 100_000), 100_000**2),
        (png_of(100_000, 100_000, chunk(b"IDAT", zlib.compress(bytes(10**6)))), 100_000**2),
        (png_of(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
        (jpeg_of(65_500, 65_500), 65_500**2),
        (webp_of(2**24, 2**24), 2**48),
        (webp_of(16_383, 16_383), 16_383**2),
        (tiff_of(60_000, 60_000), 60_000**2),
        (tiff_of(2**31, 2**31), 2**62),
        (dicom_of(65_535, 65_535), 65_535**2),
    ],
)
def test_bombs_are_refused_before_memory_is_taken(data, stated, quiet):
    words = f"{stated} pixels; at most {MAX_PIXELS} are decoded"
    tracemalloc.start()
    for decode in (decode_image, image_size):
        with pytest.raises(ConfigError, match=f"x: the header states .*{words}.*bomb"):
            decode(data, "x")
    if image_format(data, "x") == "png":
        for decode in (decode_mask, decode_label_map):
            with pytest.raises(ConfigError, match=words):
                decode(data, "x")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_bombs_in_what_a_png_carries_besides_its_pixels(quiet):
    bomb = zlib.compress(bytes(2**24), 9)
    data = FILES["png gray"]
    header, rest = data[:33], data[33:]
    for kind, start in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        carried = header + chunk(kind, start + bomb) + rest
        tracemalloc.start()
        np.testing.assert_array_equal(decode_image(carried, "x")[..., 0], SMOOTH[..., 0])
        decode_label_map(carried, "x")
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_more_data_than_the_png_has_pixels():  # libpng says so on the terminal
    rows = b"".join(b"\0" + row.tobytes() for row in SMOOTH[..., 0]) + bytes(2**22)
    data = png_of(32, 24, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    attack(data)


def test_a_dicom_of_deeply_nested_sequences(quiet):
    nested = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    data = FILES["dicom"]
    attack(data[: data.index(b"\x28\x00\x02\x00")] + nested)
