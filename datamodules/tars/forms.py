"""What tools write into a json, by kind, brought into the one form that Ark works with.

Each function takes the annotation's spec, the raw value and the place for messages, and raises
ConfigError where the value is of no form that is known. Class names may be class numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ark.types import ConfigError, Kind
from datamodules.annotations import AnnotationSpec
from datamodules.arrays import check_raters


def _multilabel(spec: AnnotationSpec, raw: Any, where: str) -> dict[str, Any]:
    if isinstance(raw, dict):
        return {name: label for name, label in raw.items() if label is not None}
    if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
        present = {spec.index(name, where) for name in raw}
        return {name: int(k in present) for k, name in enumerate(spec.classes)}
    if isinstance(raw, list) and len(raw) == len(spec.classes):
        return {c: label for c, label in zip(spec.classes, raw, strict=True) if label is not None}
    raise ConfigError(
        f"{where}: {_short(raw)}; expected {{class: 0 or 1, or -1 where uncertain}}, a list of the "
        f"classes present, or {len(spec.classes)} numbers"
    )


def _detection(spec: AnnotationSpec, raw: Any, where: str) -> Any:
    listed = raw.get("boxes") if isinstance(raw, dict) else raw
    if not isinstance(listed, list) or not all(
        isinstance(box, dict) and {"class", "bbox"} <= set(box) for box in listed
    ):
        raise ConfigError(
            f"{where}: {_short(raw)}; expected a list of "
            '{"class": NAME, "bbox": [x, y, width, height]}, or {"boxes": [...], "known": [the '
            "classes that were looked for]}"
        )
    boxes = [{"class": _class(spec, b["class"], where), "bbox": b["bbox"]} for b in listed]
    if listed is raw:
        return boxes
    if not isinstance(raw.get("known"), list):
        raise ConfigError(
            f"{where}: known is {_short(raw.get('known'))}; expected a list of the classes that "
            "were looked for on this image"
        )
    return {"boxes": boxes, "known": [_class(spec, name, where) for name in raw["known"]]}


def _segmentation(spec: AnnotationSpec, raw: Any, where: str) -> dict[str, Any]:
    if isinstance(raw, dict) and isinstance(raw.get("known"), list):
        known = {"known": [_class(spec, name, where) for name in raw["known"]]}
        return known | _raters(spec, raw.get("raters"), where)
    if isinstance(raw, list) and all(
        isinstance(m, dict) and {"class", "rle"} <= set(m) for m in raw
    ):
        rles: dict[str, list[Any]] = {}
        for mask in raw:
            rles.setdefault(_class(spec, mask["class"], where), []).append(mask["rle"])
        return {"known": list(spec.classes), "rles": rles}
    raise ConfigError(
        f'{where}: {_short(raw)}; expected {{"known": [classes]}} with a mask PNG a class, or a '
        'list of {"class": NAME, "rle": COCO RLE}'
    )


def _raters(spec: AnnotationSpec, raw: Any, where: str) -> dict[str, dict[str, int]]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: raters is {_short(raw)}; expected {{class: how many}}")
    counts = {_class(spec, n, where): check_raters(n, count, where) for n, count in raw.items()}
    return {"raters": counts}


def _by_class(spec: AnnotationSpec, raw: Any, where: str) -> dict[str, Any]:
    """Of values and points; None is unknown."""
    bare = (int, float) if spec.kind == "values" else ()
    if len(spec.classes) == 1 and isinstance(raw, bare):
        raw = [raw]
    if isinstance(raw, list) and len(raw) == len(spec.classes):
        raw = dict(zip(spec.classes, raw, strict=True))
    if isinstance(raw, dict):
        return {name: value for name, value in raw.items() if value is not None}
    form = "a number" if spec.kind == "values" else "[x, y]"
    raise ConfigError(
        f"{where}: {_short(raw)}; expected {{name: {form}}}, or a list with {form} or null for "
        f"each of {list(spec.classes)}"
    )


def _class(spec: AnnotationSpec, raw: Any, where: str) -> str:
    """A class name from a name or a number."""
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < len(spec.classes):
        return spec.classes[raw]
    return spec.classes[spec.index(raw, where)]


def _short(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) < 80 else f"{text[:77]}..."


FORMS: dict[Kind, Callable[[AnnotationSpec, Any, str], Any]] = {
    "multilabel": _multilabel,
    "multiclass": _class,
    "ordinal": _class,
    "detection": _detection,
    "segmentation": _segmentation,
    "values": _by_class,
    "points": _by_class,
}
