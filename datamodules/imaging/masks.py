"""Masks as they are stored: a PNG a class, a label map, COCO's RLE or polygons -> arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ark.types import ConfigError
from datamodules.imaging.guard import check_pixels, refusing
from datamodules.imaging.png import GRAY, PALETTE, png_header, png_indices, png_pixels

_KINDS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_MOST_GROUPS = 6  # characters of a count; 5 bits each hold any count of sane masks
_ROUNDING = 1.0  # pixels by which annotation tools may overshoot the border
_LONGEST = 2**22  # pixels around a polygon; pycocotools makes five points of each


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Decodes a binary mask to (H, W) uint8, 0 or 1.

    Raises:
        ConfigError: not a gray PNG of at most 8 bits, or more than two gray values.
    """
    with refusing(where, "the mask"):
        header = png_header(data, where)
        if header.colour != GRAY or header.depth > 8:
            kind = _KINDS.get(header.colour, header.colour)
            raise ConfigError(
                f"{where}: the mask is a {header.depth}-bit {kind} PNG; expected 8-bit gray, 0 and "
                "255"
            )
        mask = png_pixels(data, where)
        values = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256]))
        if np.count_nonzero(values) > 1:
            raise ConfigError(
                f"{where}: the mask holds {len(values)} gray values ({values[:4].tolist()}...); "
                "expected 0 for outside and one other value for inside"
            )
        return cv2.threshold(mask, 0, 1, cv2.THRESH_BINARY)[1]


def decode_label_map(data: bytes, where: str) -> np.ndarray:
    """Decodes a map of class values to (H, W) uint8 or uint16, the numbers as they are stored.

    They are the gray values of a gray PNG or the indices of a palette PNG, whose colours do not
    count.

    Raises:
        ConfigError: not a gray or palette PNG.
    """
    with refusing(where, "the label map"):
        header = png_header(data, where)
        if header.colour == PALETTE:
            return png_indices(data, where)
        if header.colour != GRAY:
            raise ConfigError(
                f"{where}: the label map is a {_KINDS.get(header.colour, header.colour)} PNG; "
                "expected gray or a palette, whose values or indices are the classes"
            )
        pixels = png_pixels(data, where)
        if header.depth >= 8:
            return pixels
        return pixels // (255 // (2**header.depth - 1))  # decoders stretch few bits to 0..255


def decode_counts(data: bytes, raters: int, where: str) -> np.ndarray:
    """Decodes a mask of several raters to (H, W) uint8: how many of them marked each pixel.

    Raises:
        ConfigError: not a gray or palette PNG, or a pixel that counts more than `raters`.
    """
    counts = decode_label_map(data, where)
    if counts.size and counts.max() > raters:
        raise ConfigError(
            f"{where}: a pixel of the mask counts {counts.max()} raters, but `raters` says "
            f"{raters}; store how many marked each pixel, 0 to {raters}"
        )
    return counts.astype(np.uint8)


def decode_rle(rle: Mapping[str, Any], where: str) -> np.ndarray:
    """Decodes COCO's RLE to (H, W) uint8, 0 or 1.

    Args:
        rle: {"size": [H, W], "counts": ...}; counts is a list, or COCO's compressed text or bytes.

    Raises:
        ConfigError: another form, more than `MAX_PIXELS` pixels, or counts that do not add up to
            H * W (pycocotools would read and write out of bounds).
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise ConfigError(f"{where}: the RLE is {_short(rle)}; expected {{size: [H, W], counts}}")
    size = rle["size"]
    if not _is_list(size) or len(size) != 2 or not all(map(_is_whole, size)):
        raise ConfigError(f"{where}: the RLE's size is {_short(size)}; expected [H, W] in pixels")
    height, width = check_pixels(int(size[0]), int(size[1]), where)
    with refusing(where, "the RLE"):
        counts = _counts(rle["counts"], height * width, where)
        inside = np.zeros(len(counts), np.uint8)
        inside[1::2] = 1
        # the runs go down the columns
        return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def decode_polygons(polygons: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The union of COCO polygons as (H, W) uint8, 0 or 1, drawn as pycocotools draws them.

    Args:
        polygons: lists of x1, y1, x2, y2, ... in pixels.
        size: (H, W) of the image.

    Raises:
        ConfigError: not three or more points each, or a point more than a pixel outside.
    """
    height, width = check_pixels(*size, where)
    if not _is_list(polygons) or not polygons:
        raise ConfigError(f"{where}: the polygons are {_short(polygons)}; expected [[x, y, ...]]")
    union = np.zeros(size, np.uint8)
    for polygon in polygons:
        points = _points(polygon, (height, width), where)
        with refusing(where, "the polygon"):
            union |= coco_mask.decode(coco_mask.frPyObjects([points], height, width))[..., 0]
    return union


def _counts(counts: Any, pixels: int, where: str) -> np.ndarray:
    """The lengths of the runs, background first, (n,) int64; they add up to `pixels`."""
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, bytes):
        runs = _decompressed(counts, where)
    elif _is_list(counts) and all(map(_is_whole, counts)):
        # a bound first, so that no number is too long for int64
        runs = np.array([min(max(count, -1), pixels + 1) for count in counts], np.int64)
    else:
        raise ConfigError(f"{where}: the RLE's counts are {_short(counts)}; expected text or list")
    if (runs.size and (runs.min() < 0 or runs.max() > pixels)) or int(runs.sum()) != pixels:
        raise ConfigError(
            f"{where}: the RLE's counts do not add up to its {pixels} pixels; export it again"
        )
    return runs


def _decompressed(text: bytes, where: str) -> np.ndarray:
    """COCO's compression: 5 bits a character, and from the fourth count on the difference to the
    last but one."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    last = (codes & 32) == 0  # of its number
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(np.append(starts, codes.size))
    if codes.min() < 0 or codes.max() > 63 or not last[-1] or lengths.max() > _MOST_GROUPS:
        raise ConfigError(f"{where}: the RLE's counts are no COCO compression; export it again")
    place = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << place, starts)
    negative = (codes[last] & 16) != 0
    numbers -= negative.astype(np.int64) << (5 * lengths)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _points(polygon: Any, size: tuple[int, int], where: str) -> list[float]:
    numbers = _is_list(polygon) and all(_is_number(value) for value in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise ConfigError(
            f"{where}: polygon {_short(polygon)}; expected x1, y1, x2, y2, ... of 3 or more points"
        )
    points = np.array(polygon, np.float64).reshape(-1, 2)
    limit = np.array([size[1], size[0]]) + _ROUNDING
    if (points < -_ROUNDING).any() or (points > limit).any():
        raise ConfigError(
            f"{where}: polygon {_short(polygon)} leaves its image of {size[1]}x{size[0]} pixels"
        )
    edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    if edges.sum() > _LONGEST:
        raise ConfigError(
            f"{where}: a polygon {edges.sum():.0f} pixels long; at most {_LONGEST} are drawn. "
            "Simplify it"
        )
    return points.ravel().tolist()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
