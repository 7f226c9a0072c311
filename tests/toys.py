"""Small tasks, targets and batches of every kind, for tests without data."""

from __future__ import annotations

import torch

from ark.types import (
    Batch,
    DetectionTarget,
    MulticlassTarget,
    MultilabelTarget,
    PointsTarget,
    SegmentationTarget,
    Target,
    TaskSpec,
    ValuesTarget,
)

HEADS = {
    "multilabel": "heads.classification.ClassificationHead",
    "multiclass": "heads.classification.ClassificationHead",
    "ordinal": "heads.classification.ClassificationHead",
    "detection": "heads.detection.DetectionHead",
    "segmentation": "heads.segmentation.SegmentationHead",
    "values": "heads.regression.RegressionHead",
}
CLASSES = ("heart", "lung", "rib")
SIZE = 64


def make_task(kind: str, dataset: str = "toy") -> TaskSpec:
    return TaskSpec(dataset, kind, kind, CLASSES, {"class_path": HEADS[kind]})  # type: ignore[arg-type]


def make_target(kind: str, count: int) -> Target:
    """A target with something known and something not, where the kind allows it."""
    generator = torch.Generator().manual_seed(count)
    if kind == "multilabel":
        labels = torch.randint(0, 2, (count, 3), generator=generator).float()
        known = torch.ones(count, 3, dtype=torch.bool)
        known[0, 0] = False
        return MultilabelTarget(labels * known, known)
    if kind in ("multiclass", "ordinal"):
        return MulticlassTarget(torch.randint(0, 3, (count,), generator=generator))
    if kind == "detection":
        box = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
        empty = torch.zeros(0, 4)
        boxes = [box if n % 2 == 0 else empty for n in range(count)]
        labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes]
        return DetectionTarget(boxes, labels)
    if kind in ("values", "points"):
        known = torch.ones(count, 3, dtype=torch.bool)
        known[0, 2] = False
        if kind == "values":
            return ValuesTarget(torch.rand(count, 3, generator=generator) * 90 * known, known)
        points = torch.rand(count, 3, 2, generator=generator) * SIZE
        return PointsTarget(points * known[..., None], known)
    masks = torch.randint(0, 2, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    known = torch.ones(count, 3, dtype=torch.bool)
    known[0, 1] = False
    return SegmentationTarget(masks, known)


def make_batch(kind: str, count: int = 2, dataset: str = "toy") -> Batch:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(
        task=f"{dataset}/{kind}",
        keys=[f"image{n}" for n in range(count)],
        images=images,
        teacher_images=images.clone(),
        target=make_target(kind, count),
    )
