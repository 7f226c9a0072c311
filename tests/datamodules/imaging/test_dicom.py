"""DICOM: real files of pydicom and pydicom-data against pydicom's own functions, and made ones."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from ark.types import ConfigError
from datamodules.imaging import gdcm_process
from datamodules.imaging.images import decode_image, image_format, image_size


def real(name: str) -> bytes:
    """A file that pydicom or pydicom-data brings along; nothing is downloaded."""
    path = get_testdata_file(name, download=False)
    assert path is not None, f"{name}: install pydicom-data"
    return Path(path).read_bytes()


def made(pixels: np.ndarray, **elements) -> bytes:
    """An uncompressed DICOM of `pixels`, gray or RGB, with further elements or other values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", uid.ExplicitVRLittleEndian)
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def item(**elements) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


CT = np.random.default_rng(0).integers(-1000, 3000, (20, 30)).astype(np.int16)


@pytest.mark.parametrize(
    "name",
    [
        "693_UNCR.dcm",  # signed CT, RescaleIntercept -1024, window 40/100
        "MR2_UNCR.dcm",  # RescaleSlope 3.77, window 1000/2000
        "MR_small.dcm",  # window 600/1600
        "MR-SIEMENS-DICOM-WithOverlays.dcm",  # two windows, overlays
        "RG1_UNCR.dcm",  # MONOCHROME1 radiograph, window 15000/30000
        "RG3_UNCR.dcm",  # MONOCHROME1 radiograph of 10 bits
        "vlut_04.dcm",  # VOI LUT sequence, 8 bits
    ],
)
def test_the_files_own_window_is_pydicoms(name):
    data = real(name)
    dataset = pydicom.dcmread(io.BytesIO(data))
    shown = apply_voi_lut(apply_modality_lut(pixel_array(dataset), dataset), dataset)
    span = output_span(dataset)
    expected = 255 * (shown.astype(float) - span[0]) / (span[1] - span[0])
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 255 - expected
    decoded = decode_image(data, name)
    assert decoded.shape == (dataset.Rows, dataset.Columns, 1)
    assert np.abs(decoded[..., 0] - expected).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(decode_image(data, name, window="header"), decoded)


def output_span(dataset) -> tuple[float, float]:
    """What pydicom's functions make of a window's ends (PS3.3 C.11.2.1.2)."""
    if "VOILUTSequence" in dataset:
        return 0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    bits, slope = dataset.BitsStored, float(dataset.get("RescaleSlope", 1))
    low = -(2.0 ** (bits - 1)) if dataset.PixelRepresentation else 0
    intercept = float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, (low + 2.0**bits - 1) * slope + intercept


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # pydicom's
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1.0, 1.5, 400.0])
def test_window_functions_are_pydicoms(function, width):
    if function == "LINEAR_EXACT" and width == 1:
        width = 0.5
    data = made(CT, WindowCenter=50.5, WindowWidth=width, VOILUTFunction=function)
    dataset = pydicom.dcmread(io.BytesIO(data))
    shown = apply_voi_lut(CT, dataset)
    expected = 255 * (shown + 2.0**15) / (2.0**16 - 1)
    assert np.abs(decode_image(data, "x")[..., 0] - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("window", ["minmax", "full", "percentile", (-160.0, 240.0)], ids=str)
def test_windows_are_in_rescaled_units(window):
    data = real("693_UNCR.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    units = apply_modality_lut(pixel_array(dataset), dataset)  # float64, by pydicom
    low, high = {
        "minmax": (units.min(), units.max()),
        "full": (-(2**13) - 1024, 2**13 - 1 - 1024),  # BitsStored is 14
        "percentile": np.percentile(units, (1, 99)),
        (-160.0, 240.0): (-160, 240),
    }[window]
    expected = 255 * np.clip((units - low) / (high - low), 0, 1)
    decoded = decode_image(data, "x", window=window)
    assert np.abs(decoded[..., 0] - expected).max() <= 0.5 + 1e-6


def test_a_modality_table_is_applied():
    data = real("mlut_18.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    units = apply_modality_lut(pixel_array(dataset), dataset).astype(float)
    expected = 255 * (units - units.min()) / (units.max() - units.min())
    decoded = decode_image(data, "x")
    assert np.abs(decoded[..., 0] - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),  # JPEG 2000, 12 bits
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm"),  # MONOCHROME1
        ("693_J2KR.dcm", "693_UNCR.dcm"),  # signed
        ("US1_J2KR.dcm", "US1_UNCR.dcm"),  # YBR_RCT
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),  # by GDCM
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm"),  # JPEG lossless, by GDCM
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm"),
        ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm"),  # PALETTE COLOR
        ("MR_small_expb.dcm", "MR_small.dcm"),  # big endian
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("color-pl.dcm", "color-px.dcm"),  # colours by plane and by pixel
        ("gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm"),  # PALETTE COLOR of 16 bits
    ],
)
def test_lossless_encodings_give_the_same(name, twin):
    data = real(name)
    decoded = decode_image(data, name)
    np.testing.assert_array_equal(decoded, decode_image(real(twin), twin))
    assert decoded.max() > decoded.min()
    assert image_size(data, name) == decoded.shape[:2]


def test_colour_is_rgb():
    name = "examples_rgb_color.dcm"
    stored = pixel_array(pydicom.dcmread(io.BytesIO(real(name))))
    np.testing.assert_array_equal(decode_image(real(name), name), stored)
    rgb = decode_image(real("SC_rgb.dcm"), "x").astype(int)
    for name in (
        "SC_ybr_full_uncompressed.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",  # JPEG, YBR_FULL, colours at half the size
        "SC_rgb_dcmtk_+eb+cr.dcm",  # JPEG of RGB
    ):
        assert np.abs(decode_image(real(name), name) - rgb).mean() < 3, name
    for name in ("SC_rgb_16bit.dcm", "SC_rgb_32bit.dcm"):
        np.testing.assert_array_equal(decode_image(real(name), name), rgb)


def test_a_palette_is_looked_up():
    data = real("examples_palette.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    tables = [dataset[f"{c}PaletteColorLookupTableData"].value for c in ("Red", "Green", "Blue")]
    high = [np.frombuffer(table, "<u2") >> 8 for table in tables]
    stored = pixel_array(dataset)
    expected = np.stack([table[stored] for table in high], -1)
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_8_bit_pixels_are_kept_and_monochrome1_is_inverted():
    gray = np.random.default_rng(0).integers(20, 200, (8, 9), np.uint8)
    for window in ("auto", "minmax", "full", (0, 10)):
        kept = decode_image(made(gray), "x", window=window)
        np.testing.assert_array_equal(kept[..., 0], gray)
    inverted = made(gray, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_image(inverted, "x")[..., 0], 255 - gray)
    own = made(gray, WindowCenter=100, WindowWidth=50)
    np.testing.assert_array_equal(decode_image(own, "x", window="minmax")[..., 0], gray)
    assert decode_image(own, "x").max() == 255


def test_one_bit_becomes_black_and_white():
    decoded = decode_image(real("liver_1frame.dcm"), "x")
    assert set(np.unique(decoded)) == {0, 255}


def test_an_enhanced_files_macros_are_read():
    macros = item(
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)],
        FrameVOILUTSequence=[item(WindowCenter=40, WindowWidth=400)],
    )
    plain = made(CT, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=40, WindowWidth=400)
    enhanced = made(CT, NumberOfFrames=1, SharedFunctionalGroupsSequence=[macros])
    expected = decode_image(plain, "x")
    assert not np.array_equal(decode_image(made(CT), "x"), expected)
    np.testing.assert_array_equal(decode_image(enhanced, "x"), expected)


def test_float_pixels():
    values = np.random.default_rng(0).normal(0, 1, (5, 6)).astype("<f4")
    data = made(np.zeros((5, 6), "<u4"), PixelData=None, FloatPixelData=values.tobytes())
    expected = 255 * (values - values.min()) / (values.max() - values.min())
    assert np.abs(decode_image(data, "x")[..., 0] - expected).max() <= 0.51


def test_a_preamble_that_is_a_tiffs_header():
    data = real("CT_small.dcm")
    assert data[:4] == b"II*\0"
    assert image_format(data, "x") == "dcm"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (real("emri_small.dcm"), "a DICOM of 10 frames; save the frame"),
        (real("OBXXXX1A_2frame.dcm"), "a DICOM of 2 frames"),
        (real("reportsi.dcm"), "holds no image"),
        (real("image_dfl.dcm"), "a deflated DICOM"),
        (real("JPEG-lossy.dcm"), "12-bit lossy JPEG"),
        (real("MR_truncated.dcm"), "cannot be decoded .*less than expected"),
        (real("badVR.dcm"), "cannot be decoded"),
        (made(CT, PixelData=None), "has no PixelData; export it"),
        (made(CT, PhotometricInterpretation="ARGB"), "'ARGB'.*expected one of MONOCHROME1"),
        (made(CT, PhotometricInterpretation="RGB"), "SamplesPerPixel 1"),
        (made(CT, BitsAllocated=12), "BitsAllocated 12"),
        (made(CT, RescaleSlope=0, RescaleIntercept=0), "RescaleSlope is 0.0"),
        (made(CT, WindowCenter=1, WindowWidth=0), "WindowWidth 0.0.*Give `window`"),
        (made(CT, WindowCenter=1, WindowWidth=9, VOILUTFunction="CUBE"), "'CUBE'"),
        (made(CT, Rows=0), "the header states 30x0"),
        (made(CT, Rows=65535, Columns=65535), "65535x65535 = 4294836225 pixels; at most 134217728"),
    ],
)
def test_what_is_refused(data, words):
    with pytest.raises(ConfigError, match=f"x.dcm: .*{words}"):
        decode_image(data, "x.dcm")


def test_a_broken_window_does_not_matter_where_another_is_asked_for():
    data = made(CT, WindowCenter=1, WindowWidth=0)
    np.testing.assert_array_equal(
        decode_image(data, "x", window="minmax"), decode_image(made(CT), "x")
    )


def jpeg_ls(codestream: bytes) -> bytes:
    pixels = encapsulate([codestream])
    return made(CT.astype(np.uint16), syntax=uid.JPEGLSLossless, PixelData=pixels)


def test_gdcm_may_end_its_process(monkeypatch):
    good = real("MR_small_jpeg_ls_lossless.dcm")
    expected = decode_image(good, "x")
    server = gdcm_process._servers[os.getpid()]
    server._process.kill()
    with pytest.raises(ConfigError, match=r"x: the image cannot be decoded \(GDCM ended on it\)"):
        decode_image(good, "x")
    np.testing.assert_array_equal(decode_image(good, "x"), expected)
    with pytest.raises(ConfigError, match="cannot be decoded"):
        decode_image(jpeg_ls(b"\xff\xd8\xff\xf7" + bytes(40)), "x")
    decode_image(good, "x")  # starts it again
    os.kill(gdcm_process._servers[os.getpid()]._process.pid, signal.SIGSTOP)  # it never answers
    monkeypatch.setattr(gdcm_process, "TIMEOUT", 0.1)
    with pytest.raises(ConfigError, match="GDCM ended on it"):
        decode_image(good, "x")


def test_a_forked_worker_has_a_gdcm_of_its_own():
    good = real("MR_small_jpeg_ls_lossless.dcm")
    expected = decode_image(good, "x")

    def work() -> None:
        np.testing.assert_array_equal(decode_image(good, "x"), expected)
        assert len(gdcm_process._servers) == 2

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    np.testing.assert_array_equal(decode_image(good, "x"), expected)
