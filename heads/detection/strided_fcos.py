"""FCOS whose output means the same in training and in evaluation.

Import it after `heads.detection.mmdet_adapter.mmdet_models()`.
"""

from __future__ import annotations

from mmdet.models.dense_heads import FCOSHead
from torch import Tensor, nn


class StridedFCOSHead(FCOSHead):
    """FCOS that predicts distances in pixels and starts each level at its own stride.

    mmdet's `norm_on_bbox` does the latter too, but then the output is in cells while training and
    in pixels in evaluation: a validation loss, or the loss of a locked head, would be wrong.
    """

    def forward_single(
        self, x: Tensor, scale: nn.Module, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One level: (B, C, h, w) -> class logits, distances in pixels, centerness logits."""
        scores, distances, centerness = super().forward_single(x, scale, stride)
        return scores, distances * stride, centerness
