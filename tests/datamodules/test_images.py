"""Decoding: the pixels that Pillow gives, or a refusal; never something in between."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ark.types import ConfigError
from datamodules.images import decode_image, decode_mask, encode_jpeg, encode_png


def encoded(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG", "quality": 90},
        {"format": "JPEG", "quality": 75, "progressive": True},
        {"format": "JPEG", "quality": 75, "subsampling": 0},
        {"format": "PNG"},
    ],
)
def test_equals_pillow(channels, options):
    smooth = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (61, 83, *channels), np.uint8), (0, 0), 2
    )
    data = encoded(smooth, **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_opaque_alpha_is_dropped_and_any_other_refused():
    pixels = np.full((4, 4, 4), 255, np.uint8)
    assert decode_image(encoded(pixels, format="PNG"), "x").shape == (4, 4, 3)
    pixels[0, 0, 3] = 0
    with pytest.raises(ConfigError, match="x: PNG of mode 'RGBA'"):
        decode_image(encoded(pixels, format="PNG"), "x")


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 3)])
def test_16_bit_is_refused(shape):
    data = cv2.imencode(".png", np.full(shape, 40000, np.uint16))[1].tobytes()
    with pytest.raises(ConfigError, match=r"scan\.png: a 16-bit PNG"):
        decode_image(data, "scan.png")


def test_masks_round_trip():
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    np.testing.assert_array_equal(decode_mask(encode_png(mask), "x"), mask.astype(np.uint8))


def test_gray_jpeg_round_trip_is_close():
    gray = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), (0, 0), 3
    )
    decoded = decode_image(encode_jpeg(gray), "x")
    assert np.abs(decoded[..., 0].astype(int) - gray).max() <= 4
