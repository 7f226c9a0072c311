"""What the stored numbers of a gray DICOM mean (PS3.3 C.11.1, modality; C.11.2, value of interest).

pydicom's functions for this make float64 images; here they are applied to the values that occur.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom import Dataset

from ark.types import ConfigError
from datamodules.imaging.windowing import Meaning

_Values = Callable[[np.ndarray], np.ndarray]


def meaning_of(dataset: Dataset, dtype: np.dtype, own: bool, where: str) -> Meaning:
    """The meaning of the pixels of `dataset`, which are stored as `dtype`.

    Args:
        own: read the file's own window too.

    Raises:
        ConfigError: a rescale or a window that makes no sense.
    """
    kind = dataset.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return Meaning((0, 2.0**dataset.BitsStored - 1))
    span, units = _modality(dataset, dtype, where)
    window = _value_of_interest(dataset, where) if own else None
    return Meaning(span, units, window, inverted=kind == "MONOCHROME1")


def _modality(
    dataset: Dataset, dtype: np.dtype, where: str
) -> tuple[tuple[float, float] | None, _Values | None]:
    """The span in units, and stored numbers -> units (None: the same)."""
    if dataset.get("ModalityLUTSequence"):
        if dtype.kind == "f":
            raise ConfigError(f"{where}: a modality table for float pixels; remove one of the two")
        units, bits = _table(dataset, dataset.ModalityLUTSequence[0])
        return (0, 2.0**bits - 1), units
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise ConfigError(
            f"{where}: RescaleSlope is {slope}, RescaleIntercept {intercept}; expected finite "
            "numbers and a slope other than 0. Correct the header"
        )
    span = None
    if dtype.kind != "f":
        bits = int(dataset.BitsStored)
        lowest = -(2.0 ** (bits - 1)) if dataset.PixelRepresentation else 0.0
        ends = sorted(slope * v + intercept for v in (lowest, lowest + 2.0**bits - 1))
        span = (ends[0], ends[1])
    if (slope, intercept) == (1, 0):
        return span, None
    return span, lambda stored: _float(stored) * slope + intercept


def _value_of_interest(dataset: Dataset, where: str) -> _Values | None:
    """Units -> brightness 0 to 1 as the file asks for; None where it does not ask."""
    if dataset.get("VOILUTSequence"):
        table, bits = _table(dataset, dataset.VOILUTSequence[0])
        return lambda units: table(np.rint(units)) / (2.0**bits - 1)
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    center, width = _number(dataset, "WindowCenter", 0), _number(dataset, "WindowWidth", 0)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else 0
    if not (math.isfinite(center) and math.isfinite(width)) or width < least or width == 0:
        raise ConfigError(
            f"{where}: WindowCenter is {center}, WindowWidth {width}; expected finite numbers and "
            "a width of 1 or more. Give `window`, or correct the header"
        )
    if function == "SIGMOID":
        return lambda units: 0.5 + np.tanh(2 * (_float(units) - center) / width) / 2
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ConfigError(f"{where}: VOILUTFunction is {function!r}; give `window`")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return lambda units: (units > center).astype(np.float32)
    return lambda units: (_float(units) - center) / width + 0.5


def _table(dataset: Dataset, item: Dataset) -> tuple[_Values, int]:
    """The look-up table of a sequence's `item`, and the bits of its entries."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count, data = count or 2**16, item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(data, "u1" if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data))
    entries = entries[:count].astype(np.float32)

    def look_up(values: np.ndarray) -> np.ndarray:
        places = np.clip(_float(values) - first, 0, len(entries) - 1)
        return entries[places.astype(np.int64)]

    return look_up, bits


def _number(dataset: Dataset, name: str, default: float) -> float:
    """The first value of an element."""
    value: Any = dataset.get(name)
    if value is None or value == "":
        return default
    return float(value[0] if hasattr(value, "__len__") else value)


def _float(values: np.ndarray) -> np.ndarray:
    """Integers are the values that occur, at most 65536, and may have 8 bytes each."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)
