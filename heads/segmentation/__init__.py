"""Segmentation: K masks, overlapping or exclusive, from a decoder of smp."""

from heads.segmentation.head import SegmentationHead as SegmentationHead
from heads.segmentation.head import SegmentationOutput as SegmentationOutput
