"""Average precision of boxes, as COCO defines it, in a form that any number of ranks can gather."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

from ark.types import BoxPrediction, DetectionTarget

IOUS = [0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


class BoxAP(Metric):
    """`map40`, `map50`, `map` (mean over IoU 0.50:0.95) and `ap50/<class>`, each in [0, 1].

    A class without a box in the truth is left out; without any box at all every value is NaN.

    torchmetrics' own metric keeps one state per image, which hangs when ranks hold different
    numbers of images. Here each state is ONE flat float32 tensor: what torchmetrics gathers from
    ranks of any length, and from a rank that saw nothing.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    predicted: list[Tensor]
    predicted_counts: list[Tensor]
    truth: list[Tensor]
    truth_counts: list[Tensor]

    def __init__(self, classes: Sequence[str], max_boxes: int = 100) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.max_boxes = max_boxes
        for state in ("predicted", "predicted_counts", "truth", "truth_counts"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, prediction: BoxPrediction, target: DetectionTarget) -> None:
        """Adds B images. Both in xyxy pixels of the same frame."""
        self.predicted.append(_flat(prediction.boxes, prediction.scores, prediction.labels))
        self.predicted_counts.append(_counts(prediction.labels))
        self.truth.append(_flat(target.boxes, target.labels))
        self.truth_counts.append(_counts(target.labels))

    def compute(self) -> dict[str, Tensor]:
        """Scalars on the CPU, by the names in the class's docstring, classes in their order."""
        precision = torch.full((len(IOUS), 101, len(self.classes)), torch.nan)
        if len(self.truth_counts):  # a list, or one tensor once it is gathered
            seen, values = self._precision()
            precision[:, :, seen] = values.where(values >= 0, torch.nan)  # -1: no such box in truth
        ap = precision.mean(dim=1)
        result = {"map40": ap[0].nanmean(), "map50": ap[1].nanmean(), "map": ap[1:].nanmean()}
        return result | {f"ap50/{name}": ap[1, k] for k, name in enumerate(self.classes)}

    def _precision(self) -> tuple[Tensor, Tensor]:
        """Class indices (K',) and precisions (IoU, recall, K') of the classes seen anywhere."""
        coco = MeanAveragePrecision(
            iou_thresholds=IOUS,
            max_detection_thresholds=[1, 10, max(100, self.max_boxes)],
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=False,
        )
        predicted = _split(self.predicted, self.predicted_counts, 6)
        truth = _split(self.truth, self.truth_counts, 5)
        coco.update(
            [{"boxes": p[:, :4], "scores": p[:, 4], "labels": p[:, 5].long()} for p in predicted],
            [{"boxes": t[:, :4], "labels": t[:, 4].long()} for t in truth],
        )
        result = coco.compute()
        # (IoU, recall, class, area, detections): all areas, the largest number of detections
        precision = result["precision"][:, :, :, 0, -1].float()
        return torch.atleast_1d(result["classes"]).long(), precision


def _flat(boxes: list[Tensor], *columns: list[Tensor]) -> Tensor:
    """B x (N, 4) and B x (N,) ... -> one flat tensor of rows, box first."""
    rows = [torch.cat(boxes).float(), *(torch.cat(column).float()[:, None] for column in columns)]
    return torch.cat(rows, dim=1).flatten()


def _counts(labels: list[Tensor]) -> Tensor:
    return torch.tensor([len(image) for image in labels], device=labels[0].device).float()


def _split(rows: list[Tensor], counts: list[Tensor], width: int) -> list[Tensor]:
    """The inverse of `_flat`: one (N, width) tensor per image, on the CPU."""
    per_image = dim_zero_cat(counts).long().tolist()
    return list(dim_zero_cat(rows).cpu().view(-1, width).split(per_image))
