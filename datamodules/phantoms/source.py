"""PhantomSource: datasets of generated radiographs whose truth is known to the pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ark.types import ConfigError, Kind
from datamodules.annotations import AnnotationSpec
from datamodules.imaging.images import encode_jpeg, encode_png
from datamodules.phantoms.anatomy import LEFT, RIGHT, Chest, Findings, draw_chest
from datamodules.phantoms.attenuation import attenuation
from datamodules.phantoms.scanner import SCANNERS, record
from datamodules.sources.base import SPLITS, Source, SourceSample

Preset = Literal["findings", "boxes", "organs"]

PRESETS: dict[str, dict[str, tuple[Kind, tuple[str, ...]]]] = {
    "findings": {"findings": ("multilabel", ("nodule", "effusion", "cardiomegaly"))},
    "boxes": {"boxes": ("detection", ("right_lung", "left_lung", "heart", "nodule"))},
    "organs": {
        "organs": ("segmentation", ("right_lung", "left_lung", "heart")),
        "diagnosis": ("multiclass", ("normal", "effusion", "cardiomegaly")),
    },
}
_UNKNOWN = 0.15  # share of the labels of "findings" that are left blank
_SMALLEST = 96  # pixels of a side; ribs vanish and nodules find no room below


class PhantomSource(Source):
    """Chest-like radiographs from (seed, split, number) alone: any one can be made by itself.

    Args:
        preset: which annotations: "findings" (multilabel, some unknown), "boxes" (detection; about
            half of the images have nodules) or "organs" (segmentation, and one diagnosis).
        style: the scanner, "digital", "computed" or "film".
        train, val, test: number of samples.
        size: side of the square picture in pixels, at least 96.
        seed: other seeds, other chests.
    """

    automatic = True

    def __init__(
        self,
        preset: Preset,
        style: str = "digital",
        train: int = 240,
        val: int = 60,
        test: int = 60,
        size: int = 192,
        seed: int = 0,
    ) -> None:
        if preset not in PRESETS:
            raise ConfigError(
                f"PhantomSource: preset is {preset!r}; expected one of {list(PRESETS)}"
            )
        if style not in SCANNERS:
            raise ConfigError(
                f"PhantomSource: style is {style!r}; expected one of {list(SCANNERS)}"
            )
        if size < _SMALLEST:
            raise ConfigError(
                f"PhantomSource: size is {size}; expected at least {_SMALLEST} pixels"
            )
        if train < 1 or min(val, test, seed) < 0:
            raise ConfigError(
                f"PhantomSource: train={train}, val={val}, test={test}, seed={seed}; expected "
                "train >= 1 and the others >= 0"
            )
        self.preset, self.style, self.size, self.seed = preset, style, size, seed
        self._counts = dict(zip(SPLITS, (train, val, test), strict=True))

    def annotations(self) -> dict[str, AnnotationSpec]:
        return {name: AnnotationSpec(*spec) for name, spec in PRESETS[self.preset].items()}

    def splits(self) -> dict[str, int]:
        return {split: count for split, count in self._counts.items() if count}

    def samples(self, split: str) -> Iterator[SourceSample]:
        return (self.sample(split, number) for number in range(self._counts[split]))

    def sample(self, split: str, number: int) -> SourceSample:
        """Sample `number` of `split`, the same in whatever order they are made."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        findings = self._findings(rng)
        chest = draw_chest(rng, self.size, findings)
        key = f"{split}_{number:05d}"
        annotations, masks = self._truth(rng, chest, findings)
        picture = record(rng, attenuation(rng, chest), SCANNERS[self.style])
        return SourceSample(
            key=key,
            image=encode_jpeg(picture),
            size=(self.size, self.size),
            annotations=annotations,
            masks=masks,
            patient=key,
        )

    def _findings(self, rng: np.random.Generator) -> Findings:
        if self.preset == "organs":  # its diagnosis is exactly one class
            diagnosis = rng.choice(PRESETS["organs"]["diagnosis"][1])
            return Findings(0, diagnosis == "effusion", diagnosis == "cardiomegaly")
        nodules = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
        return Findings(nodules, bool(rng.random() < 0.35), bool(rng.random() < 0.35))

    def _truth(
        self, rng: np.random.Generator, chest: Chest, findings: Findings
    ) -> tuple[dict[str, Any], dict[str, dict[str, bytes]]]:
        if self.preset == "findings":
            return {"findings": _labels(rng, findings)}, {}
        if self.preset == "boxes":
            return {"boxes": object_boxes(chest)}, {}
        diagnosis = {findings.effusion: "effusion", findings.cardiomegaly: "cardiomegaly"}
        organs = {name: encode_png(mask) for name, mask in organ_masks(chest).items()}
        annotations = {
            "organs": {"known": list(organs)},
            "diagnosis": diagnosis.get(True, "normal"),
        }
        return annotations, {"organs": organs}


def organ_masks(chest: Chest) -> dict[str, np.ndarray]:
    """Organ -> (H, W) bool; the heart overlaps both lungs."""
    return {
        "right_lung": chest.lung(RIGHT),
        "left_lung": chest.lung(LEFT),
        "heart": chest.heart,
    }


def _labels(rng: np.random.Generator, findings: Findings) -> dict[str, int]:
    labels = {
        "nodule": int(findings.nodules > 0),
        "effusion": int(findings.effusion),
        "cardiomegaly": int(findings.cardiomegaly),
    }
    blank = rng.random(len(labels)) < _UNKNOWN
    blank[rng.integers(len(labels))] = False  # each image keeps a label
    return {name: label for (name, label), b in zip(labels.items(), blank, strict=True) if not b}


def object_boxes(chest: Chest) -> list[dict[str, Any]]:
    """The extent of each organ's mask, and each nodule, as a detection annotation."""
    boxes = [{"class": name, "bbox": _extent(mask)} for name, mask in organ_masks(chest).items()]
    for x1, y1, x2, y2 in chest.nodule_boxes().round(2).tolist():
        boxes.append({"class": "nodule", "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]})
    return boxes


def _extent(mask: np.ndarray) -> list[float]:
    """The smallest [x, y, w, h] around `mask`, (H, W) bool."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [float(n) for n in (x, y, columns[-1] + 1 - x, rows[-1] + 1 - y)]
