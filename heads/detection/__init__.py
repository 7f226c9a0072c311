"""Detection: a detector of mmdet on the backbone's pyramid."""

from heads.detection.head import DetectionHead as DetectionHead
