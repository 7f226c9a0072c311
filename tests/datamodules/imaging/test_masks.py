"""Masks: every way of storing one gives the same array, and hostile numbers are refused."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from ark.types import ConfigError
from datamodules.imaging.images import encode_png
from datamodules.imaging.masks import decode_label_map, decode_mask, decode_polygons, decode_rle

MASK = np.random.default_rng(0).random((7, 9)) > 0.5


def png(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encode_png(MASK),
        encode_png(MASK.astype(np.uint8)),
        encode_png(MASK.astype(np.uint8) * 7),
        png(Image.fromarray(MASK.astype(np.uint8) * 255).convert("1")),
    ],
)
def test_masks_of_any_two_values(data):
    np.testing.assert_array_equal(decode_mask(data, "x"), MASK.astype(np.uint8))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_masks(value):
    decoded = decode_mask(encode_png(np.full((3, 4), value, np.uint8)), "x")
    np.testing.assert_array_equal(decoded, np.full((3, 4), value > 0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_png(np.arange(6, dtype=np.uint8).reshape(2, 3)), "holds 6 gray values"),
        (encode_png(np.array([[1, 2]], np.uint8)), "holds 2 gray values"),
        (png(Image.new("RGB", (3, 4))), "an? 8-bit RGB PNG; expected 8-bit gray"),
        (png(Image.new("P", (3, 4))), "palette"),
        (cv2.imencode(".png", np.ones((3, 4), np.uint16))[1].tobytes(), "16-bit gray"),
        (b"\xff\xd8\xff", "not a PNG"),
        (b"", "not a PNG"),
    ],
)
def test_wrong_masks(data, words):
    with pytest.raises(ConfigError, match=f"m.png: .*{words}"):
        decode_mask(data, "m.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_maps_keep_their_numbers(dtype):
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 5), dtype)
    decoded = decode_label_map(cv2.imencode(".png", labels)[1].tobytes(), "x")
    np.testing.assert_array_equal(decoded, labels)
    assert decoded.dtype == dtype


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"transparency": 0}])
def test_a_palette_counts_by_index_and_not_by_colour(options):
    labels = np.random.default_rng(0).integers(0, 12, (6, 5), np.uint8)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([255, 0, 0] * 256)  # all the same colour
    np.testing.assert_array_equal(decode_label_map(png(picture, **options), "x"), labels)


def test_label_maps_of_few_bits_are_not_stretched():
    picture = Image.fromarray((MASK * 255).astype(np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_label_map(png(picture), "x"), MASK)


def test_colours_are_no_label_map():
    with pytest.raises(ConfigError, match=r"x\.png: the label map is a RGB PNG; expected"):
        decode_label_map(png(Image.new("RGB", (3, 4))), "x.png")


def plain_rle(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, by a loop."""
    counts, last = [0], 0
    for value in mask.T.reshape(-1).tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def any_masks():
    def mask(height, width, seed, share):
        # blocks, so that runs are of all lengths
        rng = np.random.default_rng(seed)
        coarse = rng.random((height // 5 + 1, width // 5 + 1)) < share
        return np.kron(coarse, np.ones((5, 5)))[:height, :width].astype(np.uint8)

    return st.builds(
        mask, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1)
    )


@settings(max_examples=150, deadline=None)
@given(any_masks())
def test_rle_equals_pycocotools_and_a_plain_loop(mask):
    size = list(mask.shape)
    compressed = coco_mask.encode(np.asfortranarray(mask))
    for counts in (compressed["counts"], compressed["counts"].decode(), plain_rle(mask)):
        decoded = decode_rle({"size": size, "counts": counts}, "x")
        np.testing.assert_array_equal(decoded, mask)
        assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(coco_mask.decode(compressed), mask)


def test_rle_of_long_runs():
    mask = np.zeros((3000, 2000), np.uint8)
    mask[5:2990, 40:1900] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(decode_rle(compressed, "x"), mask)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=30), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_any_bytes_are_an_rle_or_refused(counts, size):
    with contextlib.suppress(ConfigError):
        assert decode_rle({"size": list(size), "counts": counts}, "x").shape == size


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [10**6, 10**6], "counts": b"0"}, "1000000000000 pixels; at most 134217728"),
        ({"size": [-5, 5], "counts": []}, "the header states 5x-5"),
        ({"size": [0, 5], "counts": []}, "the header states 5x0"),
        ({"size": [5.0, 5], "counts": [25]}, r"size is \[5.0, 5\]; expected \[H, W\]"),
        ({"size": [True, 5], "counts": [5]}, "expected"),
        ({"size": [5], "counts": [5]}, "expected"),
        ({"size": "55", "counts": [25]}, "expected"),
        ({"size": [5, 5]}, "expected {size"),
        ({"counts": [25]}, "expected {size"),
        (None, "the RLE is None"),
        ([[1, 2, 3]], "expected {size"),
        ({"size": [5, 5], "counts": None}, "counts are None"),
        ({"size": [5, 5], "counts": [12.5, 12.5]}, "expected text or list"),
        ({"size": [5, 5], "counts": [24]}, "do not add up to its 25 pixels"),
        ({"size": [5, 5], "counts": [26]}, "do not add up"),
        ({"size": [5, 5], "counts": [30, -5]}, "do not add up"),
        ({"size": [5, 5], "counts": [2**70, -(2**70) + 25]}, "do not add up"),
        ({"size": [5, 5], "counts": [2**62, 2**62, 2**62, 2**62 + 25]}, "do not add up"),
        ({"size": [5, 5], "counts": ""}, "do not add up"),
        ({"size": [5, 5], "counts": "ooooooooooooooooooo"}, "no COCO compression"),
        ({"size": [5, 5], "counts": "o"}, "no COCO compression"),
        ({"size": [5, 5], "counts": "\u00e9\u00e9"}, "counts"),
        ({"size": [5, 5], "counts": b"\xff\x00"}, "no COCO compression"),
    ],
)
def test_hostile_rles(rle, words):
    with pytest.raises(ConfigError, match=f"x: .*{words}"):
        decode_rle(rle, "x")


def test_polygons_are_united_as_pycocotools_draws_them():
    polygons = [[1, 1, 9.5, 2, 8, 11, 2, 10.25], [12, 3, 18, 3, 18, 9]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 14, 20)))
    np.testing.assert_array_equal(decode_polygons(polygons, (14, 20), "x"), expected)
    rectangle = decode_polygons([[2, 3, 8, 3, 8, 7, 2, 7]], (10, 10), "x")
    assert rectangle[3:7, 2:8].all()
    assert rectangle.sum() == 4 * 6


@pytest.mark.parametrize(
    ("polygons", "words"),
    [
        (None, "the polygons are None"),
        ([], "the polygons are"),
        ("text", "the polygons are 'text'"),
        ([[1, 1, 5, 5]], "3 or more points"),
        ([[1, 1, 5, 5, 3]], "3 or more points"),
        ([[1, 1, 5, 5, 3, "a"]], "3 or more points"),
        ([[1, 1, 5, 5, 3, float("nan")]], "3 or more points"),
        ([[1, 1, 5, 5, 3, 1e9]], "leaves its image of 10x10"),
        ([[1, 1, 5, -2, 3, 4]], "leaves its image of 10x10"),
        ([1, 1, 5, 5, 3, 3], "3 or more points"),
        ([[0, 0, 10, 10] * 2**18], "Simplify it"),
    ],
)
def test_hostile_polygons(polygons, words):
    with pytest.raises(ConfigError, match=f"x: .*{words}"):
        decode_polygons(polygons, (10, 10), "x")
