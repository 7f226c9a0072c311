"""Detection: a detector of mmdet on the backbone's pyramid."""

from .head import DetectionHead as DetectionHead
