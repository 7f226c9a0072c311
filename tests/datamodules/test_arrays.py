"""From stored annotations to arrays: what each form means, and what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, Tally, tally
from datamodules.arrays import to_arrays

CLASSES = ("heart", "lung", "rib")
SIZE = (40, 48)  # (H, W)
BOX = {"class": "lung", "bbox": [1, 2, 10, 5]}


def arrays(kind: str, value: Any, masks: Any = None) -> Any:
    spec = AnnotationSpec(kind, CLASSES)
    return to_arrays(spec, value, masks or {}, SIZE, "sample 'x'")


def test_uncertain_labels_are_neither_known_values_nor_unknown() -> None:
    np.testing.assert_array_equal(
        arrays("multilabel", {"rib": -1, "heart": 1}), np.float32([1, np.nan, -1])
    )


def test_ordinal_is_read_as_multiclass() -> None:
    assert arrays("ordinal", "rib") == arrays("multiclass", "rib") == 2


def test_a_list_of_boxes_knows_all_classes_and_a_dict_those_it_names() -> None:
    plain = arrays("detection", [BOX])
    assert plain.known is None
    part = arrays("detection", {"boxes": [BOX], "known": ["rib", "lung"]})
    assert part.known.tolist() == [False, True, True]
    np.testing.assert_array_equal(part.boxes, plain.boxes)
    np.testing.assert_array_equal(part.labels, plain.labels)
    none = arrays("detection", {"boxes": [], "known": []})
    assert none.known.tolist() == [False] * 3
    assert none.boxes.shape == (0, 4)


def test_masks_of_several_raters() -> None:
    counts = np.random.default_rng(0).integers(0, 4, SIZE).astype(np.uint8)
    value = {"known": ["heart", "rib"], "raters": {"heart": 3}}
    found = arrays("segmentation", value, {"heart": counts})
    np.testing.assert_array_equal(found.masks[0], counts)
    assert found.raters.tolist() == [3, 1, 1]
    assert found.raters.dtype == np.uint8
    assert found.known.tolist() == [True, False, True]
    assert arrays("segmentation", {"known": ["heart"]}, {"heart": counts}).raters is None


@given(
    st.dictionaries(
        st.sampled_from(CLASSES), st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_values_are_kept_and_the_others_unknown(value: dict[str, float]) -> None:
    expected = [value.get(name, np.nan) for name in CLASSES]
    np.testing.assert_array_equal(arrays("values", value), np.float32(expected))


@given(x=st.floats(-1, 49, width=32), y=st.floats(-1, 41, width=32))
def test_points_are_cut_to_the_image_by_up_to_a_pixel(x: float, y: float) -> None:
    found = arrays("points", {"lung": [x, y]})
    assert found.shape == (3, 2)
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[1], [np.clip(x, 0, 48), np.clip(y, 0, 40)], atol=1e-4)


def rating(count: Any, known: str = "heart") -> dict[str, Any]:
    return {"known": [known], "raters": {"heart": count}}


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("multilabel", {"heart": 2}, ["label of 'heart' is 2", "-1 (uncertain)"]),
        ("multilabel", {"heart": -2}, ["label of 'heart' is -2"]),
        ("multilabel", {"liver": -1}, ["'liver' is not one of the classes"]),
        ("ordinal", "severe", ["'severe' is not one of the classes"]),
        ("detection", {"boxes": [BOX], "known": ["rib"]}, ["a box of 'lung'", "['rib']", "add"]),
        ("detection", {"boxes": [], "known": ["liver"]}, ["'liver' is not one"]),
        ("segmentation", rating(3, "rib"), ["raters names 'heart'", "`known`"]),
        ("segmentation", rating(0), ["raters of 'heart' is 0", "1 to 255"]),
        ("segmentation", rating(256), ["raters of 'heart' is 256"]),
        ("segmentation", rating(True), ["raters of 'heart' is True"]),
        ("segmentation", {"known": ["rib"], "raters": {"liver": 2}}, ["'liver' is not one"]),
        ("values", {"liver": 1}, ["'liver' is not one"]),
        ("values", {"rib": float("nan")}, ["'rib': value is nan", "finite"]),
        ("values", {"rib": float("inf")}, ["value is inf"]),
        ("values", {"rib": 10**400}, ["value is 1000"]),
        ("values", {"rib": 1e39}, ["value is 1e+39"]),
        ("values", {"rib": "3"}, ["value is '3'"]),
        ("values", {"rib": True}, ["value is True"]),
        ("points", {"rib": [49.5, 3]}, ["'rib': point [49.5, 3]", "48x40"]),
        ("points", {"rib": [3, -1.5]}, ["leaves its image"]),
        ("points", {"rib": [3]}, ["expected two numbers [x, y]"]),
        ("points", {"rib": [3, None]}, ["expected two numbers"]),
        ("points", {"rib": 3}, ["expected two numbers"]),
        ("points", {"liver": [3, 3]}, ["'liver' is not one"]),
    ],
)
def test_what_cannot_be(kind: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        arrays(kind, value)
    for word in ["sample 'x'", *words]:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (
            "multilabel",
            {"rib": -1, "heart": 1, "lung": 0},
            Tally(["rib", "heart", "lung"], ["heart"], ["rib"]),
        ),
        ("ordinal", "rib", Tally(CLASSES, ["rib"])),
        ("detection", [BOX, BOX], Tally(CLASSES, ["lung", "lung"])),
        ("detection", {"boxes": [BOX], "known": ["lung"]}, Tally(["lung"], ["lung"])),
        ("values", {"rib": 0.0}, Tally(["rib"], ["rib"])),
        ("points", {"rib": [1, 2]}, Tally(["rib"], ["rib"])),
    ],
)
def test_tally(kind: str, value: Any, expected: Tally) -> None:
    found = tally(AnnotationSpec(kind, CLASSES), value, [])
    assert [list(part) for part in found] == [list(part) for part in expected]
