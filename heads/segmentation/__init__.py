"""Segmentation: K masks, overlapping or exclusive, from a decoder of smp."""

from .head import SegmentationHead as SegmentationHead
from .head import SegmentationOutput as SegmentationOutput
