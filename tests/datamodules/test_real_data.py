"""The real collection, where it is present: ARK_DATA, or ../shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamodules.config import build_source, load_datasets

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ARK_DATA", ROOT.parent / "shared" / "data"))
DATASETS = ROOT / "configs" / "datasets"

pytestmark = pytest.mark.skipif(
    not (DATA / "manifest.json").is_file(),
    reason=f"no real data in {DATA}; set ARK_DATA to the folder that holds nih14, wingspan, ...",
)


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setenv("ARK_DATA", str(DATA))
    return lambda name: build_source(load_datasets(str(DATASETS / f"{name}.yaml"))[0])


@pytest.mark.parametrize(
    ("name", "splits", "annotations"),
    [
        ("nih14", (697, 151, 152), {"findings": 14, "opacity": 1}),
        ("wingspan", (181, 39, 39), {"organs": 3}),
        ("covid_cxr", (168, 38, 38), {"view": 3, "lung_boxes": 2, "lung_mask": 1}),
    ],
)
def test_splits_and_classes(source, name, splits, annotations):
    made = source(name)
    assert tuple(made.splits().values()) == splits
    assert {a: len(spec.classes) for a, spec in made.annotations().items()} == annotations
    assert made.notes() == []


@pytest.mark.parametrize(
    ("name", "carry"),
    [
        ("wingspan", {"organs": 39}),
        ("covid_cxr", {"view": 26, "lung_boxes": 38, "lung_mask": 17}),
    ],
)
def test_every_test_image_reads(source, name, carry):
    samples = list(source(name).samples("test"))
    found = {a: sum(a in sample.annotations for sample in samples) for a in carry}
    assert found == carry
