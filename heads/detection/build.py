"""Builds mmdet modules, says what is wrong with a configuration, and checks that parts fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ark.types import ConfigError, FeatureInfo

from .config import DetectorPlan
from .mmdet_adapter import init_weights, mmdet_models

FAULTS = (KeyError, TypeError, AssertionError, ValueError, AttributeError)
SINE_WIDTH = 512  # mmdet writes 128 numbers for each of a box's four, whatever the width


class LevelNorms(nn.Module):
    """A LayerNorm over the channels of each map, as Foundation X has (spec, Network)."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(self.norms, maps, strict=True)
        return tuple(norm(x.movedim(1, -1)).movedim(-1, 1) for norm, x in pairs)


def build_neck(plan: DetectorPlan, features: FeatureInfo, level_norm: bool, where: str) -> Any:
    """L backbone maps -> the detector's maps."""
    if plan.neck is None:
        neck: Any = nn.Identity()
    elif isinstance(plan.neck, list):
        neck = nn.Sequential(*(_build(part, f"{where}: detector.neck") for part in plan.neck))
    else:
        neck = _build(plan.neck, f"{where}: detector.neck")
    for part in neck if isinstance(neck, nn.Sequential) else [neck]:
        if plan.neck is not None:
            init_weights(part)
    if not level_norm:
        return neck
    widths = [features.channels[level] for level in plan.levels]
    return nn.Sequential(LevelNorms(widths), neck)


def build_detector(plan: DetectorPlan, where: str) -> Any:
    """An mmdet detector without a neck; its backbone hands on what it gets.

    Raises:
        ConfigError: mmdet cannot build it, or it learns masks.
    """
    detector = _build(plan.detector, f"{where}: detector")
    if getattr(detector, "with_mask", False):
        raise ConfigError(
            f"{where}: detector {plan.detector['type']!r} learns masks, and a detection task has "
            "only boxes; take its box-only relative, such as FasterRCNN for MaskRCNN"
        )
    from mmdet.models.detectors import DeformableDETR

    if isinstance(detector, DeformableDETR):  # and DINO
        fit_sine_width(detector)
    init_weights(detector)
    return detector


def fit_sine_width(detector: Any) -> None:
    """Lets transformers be of another width than mmdet's 256: their first layer over a box's
    position takes what mmdet writes; at 256 nothing changes."""
    points = getattr(getattr(detector, "decoder", None), "ref_point_head", None)
    if points is not None and points.layers[0].in_features != SINE_WIDTH:
        points.layers[0] = nn.Linear(SINE_WIDTH, points.layers[0].out_features)
    places = getattr(detector, "pos_trans_fc", None)
    if places is not None and places.in_features != SINE_WIDTH:
        detector.pos_trans_fc = nn.Linear(SINE_WIDTH, places.out_features)


@torch.no_grad()
def check_fit(
    neck: nn.Module, detector: Any, features: FeatureInfo, levels: list[int], where: str
) -> None:
    """Sends nothing through the neck and compares its maps with what the detector expects.

    Raises:
        ConfigError: other strides than those of the anchors, other widths, or fewer places in the
            image than queries.
    """
    side = features.image_size
    empty = tuple(
        torch.zeros(1, features.channels[n], *(2 * (-(-side // features.strides[n]),)))
        for n in levels
    )
    mode = neck.training
    try:
        maps = neck.eval()(empty)
    except (RuntimeError, *FAULTS) as error:
        raise ConfigError(
            f"{where}: detector.neck cannot read the backbone's maps of strides "
            f"{[features.strides[n] for n in levels]}: {error}"
        ) from error
    finally:
        neck.train(mode)
    head = getattr(detector, "rpn_head", None) or getattr(detector, "bbox_head", None)
    _check_widths(head, maps, where)
    strides = [max(pair) for pair in getattr(getattr(head, "prior_generator", None), "strides", [])]
    sides = [level.shape[-1] for level in maps]
    misfit = any(abs(side / s - n) >= 1 for s, n in zip(strides, sides, strict=False))
    if strides and (misfit or len(strides) != len(maps)):
        raise ConfigError(
            f"{where}: the detector's anchors have strides {strides}, but of an image of {side} "
            f"pixels its neck gives maps of {sides} cells a side; set the strides (and those of "
            "the regions, in a two-stage detector) to those of the maps"
        )
    queries = detector.num_queries if getattr(detector, "as_two_stage", False) else 0
    if queries > (places := sum(n * n for n in sides)):
        raise ConfigError(
            f"{where}: queries is {queries}, but an image of {side} pixels has only {places} "
            f"places to propose a box at; expected at most {places}"
        )


def _check_widths(head: Any, maps: tuple[Tensor, ...], where: str) -> None:
    expected = getattr(head, "in_channels", None)
    widths = [level.shape[1] for level in maps]
    if isinstance(expected, int) and any(width != expected for width in widths):
        raise ConfigError(
            f"{where}: {type(head).__name__}.in_channels is {expected}, but the neck gives maps of "
            f"{widths} channels; make them equal"
        )


def _build(config: Any, where: str) -> Any:
    models = mmdet_models()
    from mmengine import ConfigDict

    try:
        return models.build(ConfigDict(config))
    except FAULTS as error:
        import mmdet

        raise ConfigError(
            f"{where}: mmdet {mmdet.__version__} cannot build {_name(config)}: {error}; "
            f"{_advice(models, config)}"
        ) from error


def _name(config: Any) -> str:
    kind = config.get("type")
    return repr(kind if isinstance(kind, str) else getattr(kind, "__name__", kind))


def _advice(models: Any, config: Any) -> str:
    if not isinstance(config.get("type"), str) or config["type"] in models.module_dict:
        return (
            "a configuration for another version of mmdet must be brought to this one's arguments "
            "first (mmdet's docs, migration)"
        )
    from mmdet.models.detectors import BaseDetector

    is_detector = "backbone" in config
    known = sorted(
        name
        for name, cls in models.module_dict.items()
        if isinstance(cls, type)
        and (issubclass(cls, BaseDetector) if is_detector else "necks" in cls.__module__)
    )
    return f"it knows {known}"
