"""mmdet without a compiler: a stand-in for mmcv's compiled operators, and a quiet start.

mmcv-lite ships no compiled extension, yet `mmcv.ops` loads one eagerly. Where it is absent,
`mmdet_models` puts a module in its place whose `nms` is torchvision's, sends the operators that
have a plain torch path down that path on every device, and lets all others raise by name.
Where a compiled mmcv is installed nothing is replaced.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops as torchvision_ops

from ark.types import ConfigError

log = logging.getLogger("ark")
EXTENSION = "mmcv._ext"


@functools.cache
def mmdet_models() -> Any:
    """mmdet's registry of models, complete and ready to build from. Costs seconds, once.

    Raises:
        ConfigError: where mmdet is not installed.
    """
    try:
        compiled = importlib.util.find_spec(EXTENSION) is not None
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    if not compiled:
        _stand_in()
    for message in ("torch.meshgrid", ".*`num_anchors` is deprecated"):
        warnings.filterwarnings("ignore", message)  # mmdet's own, once per process
    try:
        from mmdet import models  # noqa: F401  (importing it fills the registry)
        from mmdet.registry import MODELS
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    if not compiled:
        _use_python_focal_loss()
    operators = "mmcv's compiled ones" if compiled else "torch and torchvision (no compiled mmcv)"
    log.info("mmdet operators: %s", operators)
    return MODELS


def init_weights(module: nn.Module) -> None:
    """Runs mmengine's `module.init_weights()` without its log block per parameter."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        module.init_weights()  # type: ignore[operator]
    finally:
        logger.setLevel(level)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Non-maximum suppression under mmcv's convention of a box's width.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        offset: 0 or 1; a box is x2 - x1 + offset wide.

    Returns:
        (M,) int64 indices of the boxes kept, by falling score.
    """
    widened = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_ops.nms(widened, scores, iou_threshold)


class _StandInExtension(ModuleType):
    """Has every operator's name; raises only when one that nobody replaced is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return functools.partial(_missing_operator, name)


def _missing_operator(name: str, *args: Any, **kwargs: Any) -> None:
    raise ConfigError(
        f"this detector calls mmcv's compiled operator {name!r}, which mmcv-lite does not have; "
        "choose a detector without deformable convolutions (dino, deformable_detr, faster_rcnn, "
        "fcos, retinanet, atss), or replace mmcv-lite by an mmcv==2.1.0 compiled for your torch"
    )


def _stand_in() -> None:
    extension = _StandInExtension(EXTENSION)
    extension.__spec__ = ModuleSpec(EXTENSION, loader=None)
    extension.nms = nms  # type: ignore[attr-defined]
    sys.modules[EXTENSION] = extension

    from mmcv.ops import RoIAlign, multi_scale_deform_attn

    multi_scale_deform_attn.IS_CUDA_AVAILABLE = False
    RoIAlign.__init__ = functools.partialmethod(RoIAlign.__init__, use_torchvision=True)


def _use_python_focal_loss() -> None:
    from mmdet.models.losses import focal_loss

    def sigmoid_focal_loss(pred: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The compiled operator takes class indices, background = K; the Python one takes one-hot.
        classes = pred.size(1)
        one_hot = F.one_hot(target, classes + 1)[:, :classes]
        return focal_loss.py_sigmoid_focal_loss(pred, one_hot, *args, **kwargs)

    focal_loss.sigmoid_focal_loss = sigmoid_focal_loss


def _not_installed(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(
        f"detection heads need mmdet, but {error.name!r} is not installed; run "
        "`pip install mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.11.0rc3`"
    )
