"""Phantoms: the same for a seed, and a truth that the picture shows."""

from __future__ import annotations

import numpy as np
import pytest

from ark.types import ConfigError
from datamodules.imaging.images import decode_image
from datamodules.imaging.masks import decode_mask
from datamodules.phantoms import PhantomSource
from datamodules.phantoms.anatomy import LEFT, RIGHT, Findings, draw_chest
from datamodules.phantoms.attenuation import attenuation
from datamodules.phantoms.scanner import SCANNERS, record
from datamodules.phantoms.source import object_boxes, organ_masks


def rng(seed=0):
    return np.random.default_rng(seed)


def masks_of(sample):
    return {name: decode_mask(data, name) for name, data in sample.masks["organs"].items()}


@pytest.mark.parametrize("preset", ["findings", "boxes", "organs"])
def test_a_sample_depends_on_seed_split_and_number_alone(preset):
    source = PhantomSource(preset, train=3, size=96)
    listed = list(source.samples("train"))
    assert source.sample("train", 2) == listed[2]
    assert PhantomSource(preset, train=9, size=96).sample("train", 2) == listed[2]
    others = [
        source.sample("train", 1),
        source.sample("val", 2),
        PhantomSource(preset, size=96, seed=1).sample("train", 2),
        PhantomSource(preset, style="film", size=96).sample("train", 2),
    ]
    assert all(other.image != listed[2].image for other in others)


def test_sides_are_the_patients():
    masks = masks_of(PhantomSource("organs").sample("train", 0))
    columns = {name: np.nonzero(mask)[1].mean() for name, mask in masks.items()}
    assert columns["right_lung"] < columns["heart"] < columns["left_lung"]


def test_the_heart_is_as_wide_as_the_diagnosis_says():
    for seed in range(8):
        for large in (False, True):
            chest = draw_chest(rng(seed), 192, Findings(cardiomegaly=large))
            width = np.ptp(chest.x[chest.heart])
            ratio = width / (2 * chest.half_width)
            assert abs(ratio - chest.cardiothoracic_ratio) < 0.03
            assert (ratio > 0.5) == large


def test_an_effusion_takes_lung_and_makes_it_bright():
    for seed in range(4):
        chest = draw_chest(rng(seed), 192, Findings(effusion=True))
        side = chest.effusion.side
        assert chest.fluid.sum() > 0.04 * chest.fields[side].sum()
        assert not (chest.fluid & (chest.lung(LEFT) | chest.lung(RIGHT))).any()
        path = attenuation(rng(seed), chest)
        assert path[chest.fluid].mean() > path[chest.lung(side)].mean() + 0.5


def test_nodules_lie_in_lung_inside_their_boxes_and_are_denser():
    chest = draw_chest(rng(5), 192, Findings(nodules=3))
    boxes = chest.nodule_boxes()
    assert boxes.shape == (3, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides >= 12).all()
    assert (sides <= 24).all()
    lung = chest.lung(LEFT) | chest.lung(RIGHT)
    with_nodules = attenuation(rng(1), chest)
    chest.nodules = []
    extra = with_nodules - attenuation(rng(1), chest)
    for x1, y1, x2, y2 in boxes.round().astype(int):
        assert lung[(y1 + y2) // 2, (x1 + x2) // 2]
        assert extra[y1:y2, x1:x2].mean() > 0.2


def test_boxes_are_the_extent_of_the_masks():
    chest = draw_chest(rng(3), 192, Findings(nodules=2, effusion=True))
    boxes = object_boxes(chest)
    assert [box["class"] for box in boxes[3:]] == ["nodule", "nodule"]
    for box in boxes[:3]:
        mask = organ_masks(chest)[box["class"]]
        x, y, w, h = (int(number) for number in box["bbox"])
        assert mask.sum() == mask[y : y + h, x : x + w].sum()
        edges = mask[y, :], mask[y + h - 1, :], mask[:, x], mask[:, x + w - 1]
        assert all(edge.any() for edge in edges)


@pytest.mark.parametrize("style", SCANNERS)
def test_it_looks_like_a_radiograph(style):
    chest = draw_chest(rng(2), 192, Findings())
    picture = record(rng(2), attenuation(rng(2), chest), SCANNERS[style])
    assert (picture.dtype, picture.shape) == (np.uint8, (192, 192))
    lung = (chest.lung(LEFT) | chest.lung(RIGHT)) & ~chest.heart
    assert picture[lung].mean() + 40 < picture[chest.heart].mean()
    assert picture.std() > 40


def test_the_styles_differ():
    levels = {s: PhantomSource("organs", s).sample("train", 0).image for s in SCANNERS}
    assert len(set(levels.values())) == 3


def test_every_class_appears_and_some_labels_are_unknown():
    samples = list(PhantomSource("findings", train=40, size=96).samples("train"))
    values = [sample.annotations["findings"] for sample in samples]
    assert all(values)
    for name in ("nodule", "effusion", "cardiomegaly"):
        seen = [value.get(name) for value in values]
        assert {0, 1, None} <= set(seen)
    source = PhantomSource("organs", train=30, size=96)
    diagnoses = {sample.annotations["diagnosis"] for sample in source.samples("train")}
    assert diagnoses == {"normal", "effusion", "cardiomegaly"}


@pytest.mark.parametrize("size", [96, 160, 192, 224])
def test_any_size(size):
    sample = PhantomSource("boxes", size=size).sample("train", 1)
    assert decode_image(sample.image, "x").shape == (size, size, 1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"preset": "hands"}, "preset is 'hands'"),
        ({"preset": "boxes", "style": "mri"}, "style is 'mri'"),
        ({"preset": "boxes", "size": 32}, "size is 32"),
        ({"preset": "boxes", "train": 0}, "train=0"),
    ],
)
def test_wrong_arguments(args, words):
    with pytest.raises(ConfigError, match=words):
        PhantomSource(**args)
