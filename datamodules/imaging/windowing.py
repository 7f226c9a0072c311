"""How pixels of more than 8 bits become 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ark.types import ConfigError

WindowName = Literal["auto", "header", "minmax", "full", "percentile"]
Window = WindowName | tuple[float, float]
NAMES: tuple[str, ...] = get_args(WindowName)
PERCENTILES = (1.0, 99.0)
_BLOCK = 2**20  # pixels; numpy widens the indices of a look-up to 8 bytes each


@dataclass(frozen=True)
class Meaning:
    """What the numbers stored in a file mean.

    Args:
        span: lowest and highest value that the file's type can hold, in units; None for floats.
        units: stored numbers -> units, as a DICOM's rescale; default: they are the same.
        own: units -> brightness 0 to 1: a window that the file brings along and that takes the
            place of any other.
        inverted: the lowest value is white.
    """

    span: tuple[float, float] | None
    units: Callable[[np.ndarray], np.ndarray] | None = None
    own: Callable[[np.ndarray], np.ndarray] | None = None
    inverted: bool = False


def check_window(value: Any, where: str) -> Window:
    """A window from what a user wrote in YAML: one of `NAMES`, or [low, high].

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str) and value in NAMES:
        return value  # type: ignore[return-value]
    if isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value)):
        low, high = float(value[0]), float(value[1])
        if low < high:
            return low, high
    raise ConfigError(
        f"{where}: window is {value!r}; expected one of {', '.join(NAMES)}, or [low, high] in the "
        "file's units with low < high"
    )


def to_uint8(pixels: np.ndarray, window: Window, meaning: Meaning, where: str) -> np.ndarray:
    """Maps the window's low to 0 and its high to 255, linearly; what lies outside is clipped.

    Colour images get one window for their three channels. A constant image gives zeros.

    Args:
        pixels: any shape, integers or floats. Up to 16 bits the result is the exact, rounded one
            (by a look-up table); others are computed in float32.

    Raises:
        ConfigError: NaN or infinite pixels, or "full" for floats.
    """
    if pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2:
        values = pixels.astype(np.float32)
        values = values if meaning.units is None else meaning.units(values)
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ConfigError(f"{where}: the image holds NaN or infinite pixels; replace them")
        with np.errstate(over="ignore"):
            return _brightness(values, None, window, meaning, where)
    patterns = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    patterns = np.ascontiguousarray(patterns).view(f"u{pixels.dtype.itemsize}")
    counts = _histogram(patterns)
    present = np.flatnonzero(counts)
    stored = present.astype(patterns.dtype).view(f"{pixels.dtype.kind}{pixels.dtype.itemsize}")
    values = stored if meaning.units is None else meaning.units(stored)
    table = np.zeros(counts.size, np.uint8)
    # of the values that occur only, at most 65536: these alone are computed in float64
    values = values.astype(np.float64)
    table[present] = _brightness(values, counts[present], window, meaning, where)
    return _look_up(table, patterns)


def _brightness(
    values: np.ndarray,
    counts: np.ndarray | None,
    window: Window,
    meaning: Meaning,
    where: str,
) -> np.ndarray:
    """`values`, in units, as uint8; `counts` says how often each occurs, None: once."""
    if meaning.own is not None:
        share = meaning.own(values)
    else:
        low, high = _limits(values, counts, window, meaning, where)
        if low >= high:
            return np.zeros(values.shape, np.uint8)
        share = (values - low) / (high - low)
    share = np.clip(share, 0, 1, out=share)
    share *= 255
    gray = np.rint(share, out=share).astype(np.uint8)
    return 255 - gray if meaning.inverted else gray


def _limits(
    values: np.ndarray,
    counts: np.ndarray | None,
    window: Window,
    meaning: Meaning,
    where: str,
) -> tuple[float, float]:
    if not isinstance(window, str):
        return window
    if window == "full":
        if meaning.span is None:
            raise ConfigError(
                f"{where}: window is 'full', but floats have no range; use minmax, percentile or "
                "[low, high]"
            )
        return meaning.span
    if window == "percentile":
        if counts is None:
            low, high = np.percentile(values, PERCENTILES)
            return float(low), float(high)
        low, high = (_percentile(values, counts, percent) for percent in PERCENTILES)
        return low, high
    return float(values.min()), float(values.max())


def _percentile(values: np.ndarray, counts: np.ndarray, percent: float) -> float:
    """numpy's percentile of `values` that occur `counts` times each."""
    order = np.argsort(values)
    ends = np.cumsum(counts[order])  # number of pixels up to and with each value
    place = percent / 100 * (ends[-1] - 1)
    near = [int(place), min(int(place) + 1, ends[-1] - 1)]
    below, above = values[order[np.searchsorted(ends, near, side="right")]]
    return float(below + (place % 1) * (above - below))


def _histogram(patterns: np.ndarray) -> np.ndarray:
    """How often each unsigned number of 8 or 16 bits occurs; (256,) or (65536,) int64."""
    size = 2 ** (8 * patterns.dtype.itemsize)
    rows = patterns.reshape(patterns.shape[0], -1)
    return cv2.calcHist([rows], [0], None, [size], [0, size]).ravel().astype(np.int64)


def _look_up(table: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    flat = patterns.reshape(-1)
    out = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        np.take(table, flat[part], out=out[part], mode="clip")  # no number is outside the table
    return out.reshape(patterns.shape)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
