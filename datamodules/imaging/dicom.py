"""DICOM: one frame, gray or colour, native or compressed, as the header says it is to be shown."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset, uid
from pydicom.pixels import apply_color_lut, pixel_array

from ark.types import ConfigError
from datamodules.imaging.dicom_values import meaning_of
from datamodules.imaging.gdcm_process import decode_apart
from datamodules.imaging.guard import check_pixels
from datamodules.imaging.windowing import Window, to_uint8

_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3}
_SAMPLES |= {f"YBR_{kind}": 3 for kind in ("FULL", "FULL_422", "ICT", "RCT")}
_GDCM_ALONE = (uid.JPEGLossless, uid.JPEGLosslessSV1, *uid.JPEGLSTransferSyntaxes)
_PILLOW = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *uid.JPEG2000TransferSyntaxes)
_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def dicom_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) from the header."""
    tags = ["Rows", "Columns", "NumberOfFrames"]
    return _size(_read(data, where, stop_before_pixels=True, specific_tags=tags), where)


def decode_dicom(data: bytes, where: str, window: Window) -> np.ndarray:
    """Decodes to (H, W) gray or (H, W, 3) RGB uint8; 0 is black, whatever the file's convention.

    Gray values pass the modality rescale or table first. "auto" and "header" then mean the window
    or table that the file brings along (the first of several), and minmax where it has none. 8-bit
    pixels are otherwise kept. Overlays are not drawn.

    Raises:
        ConfigError: no image, several frames, or an encoding that is not supported.
    """
    dataset = _read(data, where)
    _size(dataset, where)
    _check_encoding(dataset, where)
    _raise_macros(dataset)
    pixels = _pixels(dataset, data, where)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)[..., :3]
        # the high byte: palettes of 16 bits span them all, but for some that use 8 of them
        return colours.astype(np.uint8) if colours.max() < 256 else (colours >> 8).astype(np.uint8)
    meaning = meaning_of(dataset, pixels.dtype, window in ("auto", "header"), where)
    plain = pixels.dtype == np.uint8 and dataset.BitsStored == 8 and meaning.units is None
    if plain and meaning.own is None:
        return 255 - pixels if meaning.inverted else pixels
    return to_uint8(pixels, window, meaning, where)


def _read(data: bytes, where: str, **options: Any) -> Dataset:
    # pydicom would inflate the whole file at once, whatever its size
    if uid.DeflatedExplicitVRLittleEndian.encode() in data:
        raise ConfigError(
            f"{where}: a deflated DICOM, which may be a decompression bomb; store it with another "
            "transfer syntax"
        )
    return pydicom.dcmread(io.BytesIO(data), force=False, **options)


def _size(dataset: Dataset, where: str) -> tuple[int, int]:
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ConfigError(f"{where}: the DICOM holds no image (no Rows, Columns); leave it out")
    frames = int(dataset.get("NumberOfFrames") or 1)
    size = check_pixels(int(dataset.Rows), int(dataset.Columns), where, frames)
    if frames > 1:
        raise ConfigError(
            f"{where}: a DICOM of {frames} frames; save the frame you mean as a file of its own"
        )
    return size


def _check_encoding(dataset: Dataset, where: str) -> None:
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise ConfigError(f"{where}: the DICOM has no PixelData; export it with its pixels")
    kind = dataset.get("PhotometricInterpretation")
    samples, bits = dataset.get("SamplesPerPixel", 1), dataset.get("BitsAllocated")
    if kind not in _SAMPLES or samples != _SAMPLES[kind] or bits not in (1, 8, 16, 32, 64):
        raise ConfigError(
            f"{where}: DICOM of PhotometricInterpretation {kind!r}, SamplesPerPixel {samples}, "
            f"BitsAllocated {bits}; expected one of {', '.join(_SAMPLES)} with as many samples, of "
            "1, 8, 16 or 32 bits. Convert it"
        )


def _raise_macros(dataset: Dataset) -> None:
    """An enhanced file keeps rescale and window in functional groups; they move to the top."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or []:
            for macro in _MACROS:
                for item in group.get(macro) or []:
                    dataset.update(item)


def _pixels(dataset: Dataset, data: bytes, where: str) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB, the stored numbers.

    JPEG and JPEG 2000 go through Pillow, which gives GDCM's pixels and refuses broken data; GDCM
    ends the process on some. What GDCM alone can read is decoded in a process of its own.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8:
        raise ConfigError(
            f"{where}: a DICOM of 12-bit lossy JPEG, which is not supported; store it uncompressed"
        )
    deep_colour = dataset.SamplesPerPixel == 3 and dataset.BitsAllocated > 8
    if syntax in _GDCM_ALONE or (syntax in uid.JPEG2000TransferSyntaxes and deep_colour):
        pixels = decode_apart(data, where)
    else:
        plugin = "pillow" if syntax in _PILLOW else ""
        pixels = pixel_array(dataset, decoding_plugin=plugin)
    expected = (dataset.Rows, dataset.Columns)
    if pixels.shape[:2] != expected:
        raise ConfigError(f"{where}: {pixels.shape[:2]} pixels where the header says {expected}")
    return pixels
