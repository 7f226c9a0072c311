"""Which rows of a detector's tensors belong to which class, of the detectors that Ark ships."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ark.class_rows import ClassRows

BOX = 4  # numbers a box


def class_rows(detector: Any, names: Iterable[str], classes: int) -> dict[str, ClassRows] | None:
    """
    Args:
        names: of the head's state dict.
        classes: K.

    Returns:
        By name; None for a detector whose layout is not known here.
    """
    found = _layouts(detector, classes)
    if found is None:
        return None
    return {name: rows for name in names for pattern, rows in found if re.fullmatch(pattern, name)}


def _layouts(detector: Any, classes: int) -> list[tuple[str, ClassRows]] | None:
    from mmdet.models.dense_heads import (
        ATSSHead,
        DeformableDETRHead,
        DINOHead,
        FCOSHead,
        RetinaHead,
    )

    from .strided_fcos import StridedFCOSHead

    head = getattr(detector, "bbox_head", None)
    if head is None:
        return _two_stage(getattr(detector, "roi_head", None))
    if getattr(head, "cls_out_channels", None) != classes:  # a softmax with a background
        return None
    if type(head) in (DINOHead, DeformableDETRHead):
        noise = r"detector\.dn_query_generator\.label_embedding\.weight"
        return [(r"detector\.bbox_head\.cls_branches\..*", ClassRows()), (noise, ClassRows())]
    layers = {
        ATSSHead: "atss_cls",
        FCOSHead: "conv_cls",
        StridedFCOSHead: "conv_cls",
        RetinaHead: "retina_cls",
    }
    if type(head) not in layers:
        return None
    every_anchor = ClassRows(groups=1 if issubclass(type(head), FCOSHead) else head.num_base_priors)
    return [(rf"detector\.bbox_head\.{layers[type(head)]}\.\w+", every_anchor)]


def _two_stage(roi_head: Any) -> list[tuple[str, ClassRows]] | None:
    """One second stage with a softmax, as Faster R-CNN has; the background is its last class."""
    from mmdet.models.roi_heads import StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead

    if type(roi_head) is not StandardRoIHead or type(roi_head.bbox_head) is not Shared2FCBBoxHead:
        return None
    head = roi_head.bbox_head
    if head.custom_cls_channels or head.loss_cls.use_sigmoid or head.bbox_coder.encode_size != BOX:
        return None
    layouts = [(r"detector\.roi_head\.bbox_head\.fc_cls\.\w+", ClassRows(after=1))]
    if not head.reg_class_agnostic:
        layouts.append((r"detector\.roi_head\.bbox_head\.fc_reg\.\w+", ClassRows(each=BOX)))
    return layouts
