"""Decoding: the pixels that Pillow gives, an exact window, or a refusal; nothing in between."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from encoding import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ark.types import ConfigError
from datamodules.imaging.images import (
    check_window,
    decode_image,
    encode_jpeg,
    encode_png,
    image_format,
    image_size,
)

SMOOTH = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8), (0, 0), 2
)
GRAY = SMOOTH[..., 0]
DEEP = np.random.default_rng(1).integers(300, 40000, (31, 37), np.uint16)


def opencv(pixels: np.ndarray, ending: str) -> bytes:
    return cv2.imencode(ending, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


@pytest.mark.parametrize("pixels", [GRAY, SMOOTH], ids=["gray", "colour"])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"format": "JPEG", "quality": 90}, "jpg"),
        ({"format": "JPEG", "quality": 75, "progressive": True}, "jpg"),
        ({"format": "JPEG", "quality": 75, "subsampling": 0}, "jpg"),
        ({"format": "PNG"}, "png"),
        ({"format": "WEBP"}, "webp"),
        ({"format": "WEBP", "lossless": True}, "webp"),
        ({"format": "TIFF"}, "tif"),
        ({"format": "TIFF", "compression": "tiff_lzw"}, "tif"),
        ({"format": "TIFF", "compression": "tiff_adobe_deflate"}, "tif"),
        ({"format": "TIFF", "compression": "jpeg"}, "tif"),
    ],
    ids=str,
)
def test_equals_pillow(pixels, options, kind):
    data = encoded(pixels, **options)
    gray = pixels.ndim == 2 and kind != "webp"  # WebP knows no gray
    expected = np.array(Image.open(io.BytesIO(data)).convert("L" if gray else "RGB"))
    decoded = decode_image(data, "x")
    assert decoded.shape == (*pixels.shape[:2], 1 if gray else 3)
    np.testing.assert_array_equal(decoded.squeeze(), expected)
    assert image_format(data, "x") == kind
    assert image_size(data, "x") == pixels.shape[:2]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("P", "PNG"), ("1", "TIFF"), ("P", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG")],
)
def test_rarer_modes_equal_pillow(mode, kind):
    data = encoded(Image.fromarray(SMOOTH).convert(mode), format=kind)
    expected = np.array(Image.open(io.BytesIO(data)).convert("L" if mode == "1" else "RGB"))
    np.testing.assert_array_equal(decode_image(data, "x").squeeze(), expected)


def test_exif_orientation_is_not_applied_and_a_turned_tiff_refused():
    exif = Image.Exif()
    exif[274] = 6
    assert decode_image(encoded(SMOOTH, format="JPEG", exif=exif), "x").shape == (61, 83, 3)
    with pytest.raises(ConfigError, match=r"x: TIFF orientation 6; save the image upright"):
        image_size(encoded(SMOOTH, format="TIFF", tiffinfo={274: 6}), "x")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_opaque_alpha_is_dropped_and_any_other_refused(kind):
    pixels = np.dstack([SMOOTH, np.full(GRAY.shape, 255, np.uint8)])
    decoded = decode_image(encoded(pixels, format=kind, lossless=True), "x")
    np.testing.assert_array_equal(decoded, SMOOTH)
    pixels[3, 4, 3] = 254
    with pytest.raises(ConfigError, match="x: the image has transparent pixels; flatten"):
        decode_image(encoded(pixels, format=kind, lossless=True), "x")


def test_gray_with_alpha():
    both = Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (83, 61), 255)])
    np.testing.assert_array_equal(decode_image(encoded(both, format="PNG"), "x")[..., 0], GRAY)
    both.putalpha(100)
    with pytest.raises(ConfigError, match="transparent"):
        decode_image(encoded(both, format="PNG"), "x")


def test_a_transparent_value_counts_in_a_palette_only():
    data = encoded(GRAY, format="PNG", transparency=int(GRAY[0, 0]))
    np.testing.assert_array_equal(decode_image(data, "x")[..., 0], GRAY)
    palette = Image.fromarray(SMOOTH).quantize(16)
    with pytest.raises(ConfigError, match="transparent"):
        decode_image(encoded(palette, format="PNG", transparency=palette.getpixel((0, 0))), "x")


def encoded_frames(kind: str) -> bytes:
    frames = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    return encoded(frames[0], format=kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("kind", "words"),
    [("PNG", "an animated PNG"), ("WEBP", "an animated WebP"), ("TIFF", "several pages")],
)
def test_several_frames_are_refused(kind, words):
    with pytest.raises(ConfigError, match=f"x: an? .*{words}|x: {words}.*save the"):
        decode_image(encoded_frames(kind), "x")


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.booleans())
def test_scaled_decoding_keeps_both_sides_long_enough(height, width, min_side, colour):
    pixels = np.zeros((height, width, 3) if colour else (height, width), np.uint8)
    data = encoded(pixels, format="JPEG")
    decoded = decode_image(data, "x", min_side=min_side)
    assert decoded.shape[2] == (3 if colour else 1)
    for side, stored in zip(decoded.shape[:2], pixels.shape[:2], strict=True):
        assert min(min_side, stored) <= side <= stored


def test_scaled_decoding_makes_a_large_jpeg_smaller_and_looks_the_same():
    large = cv2.resize(SMOOTH, (1024, 800))
    small = decode_image(encoded(large, format="JPEG"), "x", min_side=200)
    assert small.shape == (200, 256, 3)
    expected = cv2.resize(large, (256, 200), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 2


LIMITS = {
    "minmax": lambda v: (v.min(), v.max()),
    "full": lambda v: (0, 65535),
    "percentile": lambda v: tuple(np.percentile(v, (1, 99))),
    (1000.5, 20000): lambda v: (1000.5, 20000),
}


def assert_windowed(decoded: np.ndarray, values: np.ndarray, window) -> None:
    """`decoded` is the nearest number to the float64 formula; of two as near, either."""
    low, high = LIMITS[window](values.astype(np.float64))
    exact = 255 * np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.squeeze() - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("window", LIMITS, ids=str)
@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "colour"])
def test_16_bit_is_windowed_exactly(window, ending, channels):
    values = np.random.default_rng(2).integers(300, 40000, (31, 37, *channels), np.uint16)
    data = opencv(values, ending)
    assert image_size(data, "x") == (31, 37)
    assert_windowed(decode_image(data, "x", window=window), values, window)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 65535), st.sampled_from(list(LIMITS)))
def test_windows_of_any_range(seed, most, window):
    values = np.random.default_rng(seed).integers(0, most, (9, 11), np.uint16, endpoint=True)
    decoded = decode_image(opencv(values, ".png"), "x", window=window)
    low, high = LIMITS[window](values.astype(float))
    if low < high:
        assert_windowed(decoded, values, window)
    else:
        assert not decoded.any()


@pytest.mark.parametrize("window", ["auto", "header", "minmax", "percentile"])
def test_a_constant_image_gives_zeros(window):
    data = opencv(np.full((5, 6), 40000, np.uint16), ".png")
    assert not decode_image(data, "x", window=window).any()


def test_auto_and_header_are_minmax_and_8_bit_is_never_windowed():
    deep = opencv(DEEP, ".png")
    expected = decode_image(deep, "x", window="minmax")
    for window in ("auto", "header"):
        np.testing.assert_array_equal(decode_image(deep, "x", window=window), expected)
    for window in (*LIMITS, "auto"):
        kept = decode_image(encode_png(GRAY), "x", window=window)
        np.testing.assert_array_equal(kept[..., 0], GRAY)


@pytest.mark.parametrize("window", ["minmax", "percentile", (-3.5, 20)], ids=str)
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">i4", "<u4", "<f4", ">f4"])
def test_other_deep_tiffs(window, dtype):
    values = np.random.default_rng(3).normal(0, 30, (13, 17)).astype(dtype)
    if dtype == "<u4":
        values = np.abs(values.astype(np.int32)).astype(dtype)
    limits = LIMITS | {(-3.5, 20): lambda v: (-3.5, 20)}
    low, high = limits[window](values.astype(np.float64))
    exact = 255 * np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    decoded = decode_image(tiff(values), "x", window=window)
    assert np.abs(decoded.squeeze() - exact).max() <= 0.5 + 1e-4


def test_the_range_of_a_type_is_its_own():
    values = np.array([[-(2**15), 0, 2**15 - 1]], "<i2")
    np.testing.assert_array_equal(
        decode_image(tiff(values), "x", window="full").squeeze(), [0, 128, 255]
    )


def test_white_is_zero_is_inverted():
    plain = decode_image(tiff(DEEP), "x")
    np.testing.assert_array_equal(decode_image(tiff(DEEP, photometric=0), "x"), 255 - plain)
    flipped = decode_image(tiff(GRAY, photometric=0), "x")
    np.testing.assert_array_equal(flipped[..., 0], 255 - GRAY)


def tiff(values: np.ndarray, photometric: int = 1) -> bytes:
    """An uncompressed TIFF, written by hand."""
    order = "big" if values.dtype.byteorder == ">" else "little"
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    body = values.tobytes()
    entries = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.dtype.itemsize}
    entries |= {259: 1, 262: photometric, 273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: values.shape[0]}
    entries |= {279: len(body), 339: kind}
    directory = len(entries).to_bytes(2, order)
    for tag, value in sorted(entries.items()):
        directory += tag.to_bytes(2, order) + (4).to_bytes(2, order) + (1).to_bytes(4, order)
        directory += value.to_bytes(4, order)
    magic = b"MM\0*" if order == "big" else b"II*\0"
    return magic + (8).to_bytes(4, order) + directory + bytes(4) + body


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_must_be_finite_and_have_no_full_range(bad):
    values = np.ones((3, 4), np.float32)
    with pytest.raises(ConfigError, match="x: window is 'full', but floats"):
        decode_image(tiff(values), "x", window="full")
    values[1, 2] = bad
    with pytest.raises(ConfigError, match="x: the image holds NaN or infinite"):
        decode_image(tiff(values), "x")


@pytest.mark.parametrize("value", ["auto", "minmax", [0, 4095], (-1000, 400.5)])
def test_windows_from_yaml(value):
    assert check_window(value, "x") == (value if isinstance(value, str) else tuple(value))


@pytest.mark.parametrize(
    "value", ["lung", "", None, 5, [1], [1, 1], [2, 1], [0, float("nan")], ["a", "b"], [True, 9]]
)
def test_wrong_windows(value):
    with pytest.raises(ConfigError, match=r"source: window is .*percentile, or \[low, high\]"):
        check_window(value, "source")
    with pytest.raises(ConfigError, match="window is"):
        decode_image(encode_png(GRAY), "x", window=value)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"RIFF1234AVI ", b"BM" + bytes(200)])
def test_other_formats_are_refused(data):
    with pytest.raises(ConfigError, match=r"x: begins with .* neither JPEG, PNG, WebP, TIFF nor"):
        image_size(data, "x")


def test_gray_jpeg_round_trip_is_close():
    decoded = decode_image(encode_jpeg(GRAY), "x")
    assert decoded.shape == (61, 83, 1)
    assert np.abs(decoded[..., 0].astype(int) - GRAY).max() <= 5
