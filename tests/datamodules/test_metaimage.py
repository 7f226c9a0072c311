"""MetaImages: the pixels that come out are the pixels that went in."""

from __future__ import annotations

import numpy as np
import pytest
from public_formats import metaimage

from ark.types import ConfigError
from datamodules.imaging.images import decode_image, image_format, image_size
from datamodules.sources.metaimage import from_metaimage

GRAY = np.arange(6 * 5).reshape(6, 5)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<i2", "<f4", "<f8"])
def test_pixels_survive(kind: str, compressed: bool) -> None:
    big = {"BinaryDataByteOrderMSB": "True"} if kind.startswith(">") else {}
    data = from_metaimage(metaimage(GRAY.astype(kind), compressed, **big), "x")
    assert image_format(data, "x") == ("tif" if "f" in kind else "png")
    assert image_size(data, "x") == (6, 5)
    pixels = decode_image(data, "x", window=[0, 255])[..., 0]
    np.testing.assert_array_equal(pixels, GRAY)


def test_values_below_zero_and_fractions_survive() -> None:
    for array in ((GRAY - 15).astype("<i2"), ((GRAY - 15) / 4).astype("<f4")):
        data = from_metaimage(metaimage(array), "x")
        low, high = float(array.min()), float(array.max())
        pixels = decode_image(data, "x", window=[low, high])[..., 0]
        np.testing.assert_allclose(pixels, (array - low) / (high - low) * 255, atol=0.51)


def test_one_slice_may_be_three_dimensional() -> None:
    data = metaimage(GRAY.astype("u1"), NDims="3", DimSize="5 6 1")
    assert image_size(from_metaimage(data, "x"), "x") == (6, 5)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"ElementDataFile": "x.raw"}, ["pixels are in 'x.raw'", "LOCAL"]),
        ({"DimSize": "5 6 2"}, ["DimSize is '5 6 2'", "one image"]),
        ({"DimSize": "5"}, ["DimSize is '5'"]),
        ({"DimSize": "five six"}, ["DimSize is 'five six'"]),
        ({"DimSize": "500000 600000"}, ["x.mha", "500000"]),
        ({"DimSize": "5 7"}, ["30 bytes of pixels", "expected 35"]),
        ({"DimSize": "5 5"}, ["26 bytes of pixels", "expected 25"]),  # no more is inflated
        ({"ElementType": "MET_LONG"}, ["ElementType is 'MET_LONG'"]),
        ({"ElementNumberOfChannels": "3"}, ["of 3 channels"]),
    ],
)
def test_wrong_headers(header: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_metaimage(metaimage(GRAY.astype("u1"), **header), "x.mha")
    for word in ("x.mha", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("data", [b"ObjectType = Image\n", b"NDims = 2\nElementDataFile = LOCAL"])
def test_no_header(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no MetaImage"):
        from_metaimage(data, "x.mha")


def test_broken_pixels() -> None:
    header = metaimage(GRAY.astype("u1")).partition(b"LOCAL\n")[0] + b"LOCAL\n"
    with pytest.raises(ConfigError, match="inflated"):
        from_metaimage(header + b"?" * 20, "x.mha")
    with pytest.raises(ConfigError, match="do not fit"):
        from_metaimage(metaimage(GRAY + np.pi), "x.mha")
