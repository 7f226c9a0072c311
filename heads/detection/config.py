"""From a preset's name, an mmdet configuration or its file to the parts of a detector.

A configuration is a detector of mmdet 3: what names a backbone and its images' preparation is
dropped, for both are Ark's; the number of classes is set wherever it occurs, and the neck is told
the widths of our maps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ark.types import ConfigError, FeatureInfo

from .detr_presets import deformable_detr, dino
from .files import plain
from .presets import atss, fcos, retinanet
from .two_stage_presets import faster_rcnn

PRESETS: dict[str, Callable[..., dict[str, Any]]] = {
    "atss": atss,
    "deformable_detr": deformable_detr,
    "dino": dino,
    "faster_rcnn": faster_rcnn,
    "fcos": fcos,
    "retinanet": retinanet,
}
LEAST = {"convs": 0}  # other whole numbers are at least 1, others at least 0 ...
POSITIVE = ("label_noise", "box_noise")  # ... but these are more


@dataclass
class DetectorPlan:
    """What to build. Both configurations are plain data of the caller's own."""

    neck: Any  # an mmdet configuration, several in a list, or None
    detector: dict[str, Any]  # without neck; its backbone hands on what it gets
    levels: list[int]  # indices of the backbone's maps that the neck reads, finest first


def plan_detector(
    detector: str | Mapping[str, Any],
    detector_args: Mapping[str, Any] | None,
    features: FeatureInfo,
    classes: int,
    min_stride: int | None,
    extra_levels: int | None,
    where: str,
) -> DetectorPlan:
    """The arguments are those of `heads.detection.DetectionHead`.

    Args:
        where: what this configures, for error messages.

    Raises:
        ConfigError: an unknown preset or argument, or a configuration that is none of a detector.
    """
    if isinstance(detector, str) and detector in PRESETS:
        levels = _levels(features, 8 if min_stride is None else min_stride, where)
        strides = [features.strides[level] for level in levels]
        extra = 1 if extra_levels is None else extra_levels
        strides += [strides[-1] * 2**n for n in range(1, extra + 1)]
        config = _preset(detector, dict(detector_args or {}), strides, where)
    else:
        assert not isinstance(detector, str)  # DetectionHead has read the file
        if detector_args or extra_levels is not None:
            name = "detector_args" if detector_args else "extra_levels"
            raise ConfigError(
                f"{where}: {name} is for the presets {sorted(PRESETS)}; in a configuration of your "
                "own, write these numbers into it"
            )
        config = _own(detector, where)
        levels = _levels_read(config, features, min_stride, where)
    _set_classes(config, classes)
    for dropped in ("backbone", "data_preprocessor", "init_cfg"):
        config.pop(dropped, None)
    neck = config.get("neck")
    first = _first_neck(config)
    if first is not None:
        widths = [features.channels[level] for level in levels]
        single = isinstance(first.get("in_channels"), int)
        first["in_channels"] = widths[0] if single else widths
    return DetectorPlan(neck, config | {"neck": None, "backbone": {"type": nn.Identity}}, levels)


def set_postprocessing(
    config: dict[str, Any],
    max_boxes: int | None,
    score_threshold: float | None,
    nms_iou: float | None,
    where: str,
) -> None:
    """Changes `config["test_cfg"]` where a number is given; see `DetectionHead`."""
    last = config["test_cfg"] = config.get("test_cfg") or {}
    last = last.get("rcnn", last)
    if max_boxes is not None:
        last["max_per_img"] = max_boxes
    if "num_queries" in config and "max_per_img" in last:
        pairs = config["num_queries"] * config["bbox_head"]["num_classes"]
        last["max_per_img"] = min(last["max_per_img"], pairs)
    if score_threshold is not None and "score_thr" in last:
        last["score_thr"] = score_threshold
    if nms_iou is not None:
        if "nms" not in last:
            raise ConfigError(
                f"{where}: nms_iou is {nms_iou}, but this detector has no non-maximum suppression; "
                "leave nms_iou out"
            )
        last["nms"]["iou_threshold"] = nms_iou


def _preset(name: str, given: dict[str, Any], strides: list[int], where: str) -> dict[str, Any]:
    preset = PRESETS[name]
    accepted = dict(list(inspect.signature(preset).parameters.items())[1:])
    for key, value in given.items():
        if key not in accepted:
            raise ConfigError(
                f"{where}: detector {name!r} has no argument {key!r}; detector_args accepts "
                f"{list(accepted)}"
            )
        _check_number(f"{where}: detector_args.{key}", key, value, accepted[key].default)
        if key in ("channels", "width") and value % 8:
            raise ConfigError(
                f"{where}: detector_args.{key} is {value}; expected a multiple of 8, such as 64 or "
                "96, because the normalisation takes groups of 8"
            )
    return preset(strides, **given)


def _check_number(what: str, key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{what} is {value!r}; expected true or false")
        return
    whole = isinstance(default, int)
    least = LEAST.get(key, 1) if whole else 0
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or value < least or (key in POSITIVE and value == 0):
        kind = "a whole number" if whole else "a number"
        bound = "> 0" if key in POSITIVE else f">= {least}"
        raise ConfigError(f"{what} is {value!r}; expected {kind} {bound}")


def _own(detector: Mapping[str, Any], where: str) -> dict[str, Any]:
    config = plain(detector)
    config = config.get("model", config)
    if "type" in config:
        return config
    if set(config) != {"neck", "bbox_head"}:
        raise ConfigError(
            f"{where}: a detector of your own is an mmdet 3 configuration with a 'type', or has "
            f"exactly the keys 'neck' and 'bbox_head', but this one has {sorted(config)}"
        )
    head = config["bbox_head"]
    cfgs = {name: head.pop(name, None) for name in ("train_cfg", "test_cfg")}
    return {"type": "SingleStageDetector", **config, **cfgs, "test_cfg": cfgs["test_cfg"] or {}}


def _set_classes(node: Any, classes: int) -> None:
    if isinstance(node, list):
        for item in node:
            _set_classes(item, classes)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "num_classes":
            node[key] = classes
        elif key != "rpn_head":  # it tells boxes from no boxes
            _set_classes(value, classes)
            if key == "bbox_head":
                for head in value if isinstance(value, list) else [value]:
                    head["num_classes"] = classes


def _levels(features: FeatureInfo, min_stride: int, where: str) -> list[int]:
    levels = [n for n, stride in enumerate(features.strides) if stride >= min_stride]
    if not levels:
        raise ConfigError(
            f"{where}: no map of the backbone has a stride >= min_stride={min_stride}; "
            f"its strides are {list(features.strides)}; lower min_stride or take a deeper backbone"
        )
    return levels


def _first_neck(config: dict[str, Any]) -> Any:
    neck = config.get("neck")
    return neck[0] if isinstance(neck, list) and neck else neck


def _levels_read(
    config: dict[str, Any], features: FeatureInfo, min_stride: int | None, where: str
) -> list[int]:
    """The coarsest maps, as many as the configuration's neck reads."""
    channels = (_first_neck(config) or {}).get("in_channels")
    if min_stride is not None or channels is None:
        return _levels(features, 8 if min_stride is None else min_stride, where)
    count = 1 if isinstance(channels, int) else len(channels)
    have = len(features.strides)
    if count > have:
        raise ConfigError(
            f"{where}: the detector's neck reads {count} maps, but the backbone has {have}, of "
            f"strides {list(features.strides)}; shorten neck.in_channels or take another backbone"
        )
    return list(range(have - count, have))
