"""How an annotation is stored among the members of a sample: our own way, or another tool's.

A WebDataset sample is a set of tar members that share a key: `<key>.<ending>`. Ours keep every
annotation in `<key>.json`, under `annotations.<name>`, with masks as `<key>.<name>.<class>.png`.
Others' tars are read as they are when the dataset's YAML says where each annotation is:

    stored as                                            `annotations` entry in the YAML
    <key>.cls, a class number or name                    member: cls
    <key>.json, {"meta": {"tags": ["mass"]}}             field: meta.tags
    <key>.json, {"boxes": [{"class": 2, "bbox": ...}]}   field: boxes
    <key>.json, {"segs": [{"class": "a", "rle": ...}]}   field: segs
    <key>.json, {"marks": {"apex": [10.5, 3]}}           field: marks
    <key>.json, {"age": 61}                              field: age
    <key>.seg.png, pixels hold class values              member: seg.png, values: [1, 2]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, check_name
from datamodules.imaging.masks import decode_counts, decode_label_map, decode_mask, decode_rle
from datamodules.tars.forms import FORMS

IMAGE, JSON = "image", "json"  # columns of a shard's table beside the masks'
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "dcm")
Read = Callable[[str], bytes | None]  # a member's ending -> its content; None where absent


def mask_member(annotation: str, name: str) -> str:
    """The end of a mask's member name: `organs.heart.png`. Class names may hold any character."""
    return f"{annotation}.{quote(name, safe='').replace('.', '%2E')}.png"


@dataclass(frozen=True)
class Stored:
    """One annotation of a dataset: its meaning, and where its values lie in a sample.

    Args:
        name: of the annotation.
        spec: kind and classes.
        member: the ending of the member that holds it.
        field: in a json, the keys on the way to it, joined by dots.
        values: of a label map: the pixel value of each class; 0 is background.
    """

    name: str
    spec: AnnotationSpec
    member: str = JSON
    field: str = ""
    values: tuple[int, ...] = ()

    @classmethod
    def ours(cls, name: str, spec: AnnotationSpec) -> Stored:
        return cls(name, spec, JSON, f"annotations.{name}")

    @classmethod
    def checked(cls, name: str, config: Any, where: str) -> Stored:
        """From YAML or an index: `{kind, classes, [member], [field], [values]}`.

        Raises:
            ConfigError: names what is wrong.
        """
        where = f"{where}: annotation {name!r}"
        allowed = {"kind", "classes", "member", "field", "values"}
        if not isinstance(config, Mapping) or (unknown := sorted(set(config) - allowed)):
            what = unknown[0] if isinstance(config, Mapping) else config
            raise ConfigError(f"{where}: {what!r} is not expected; expected {sorted(allowed)}")
        check_name(name, where)
        spec = AnnotationSpec.checked(config.get("kind"), config.get("classes") or [], where)
        member = str(config.get("member", JSON)).lower()
        field = str(config.get("field", f"annotations.{name}" if member == JSON else ""))
        if field and member != JSON:
            raise ConfigError(
                f"{where}: field is {field!r}, but member {member!r} has no fields; drop one"
            )
        values = _check_values(spec, member, config.get("values"), where)
        return cls(name, spec, member, field, values)

    def as_config(self) -> dict[str, Any]:
        """Plain data that `checked` turns into the same."""
        config: dict[str, Any] = {"kind": self.spec.kind, "classes": list(self.spec.classes)}
        if self != Stored.ours(self.name, self.spec):
            config |= {"member": self.member, "field": self.field}
            config |= {"values": list(self.values)} if self.values else {}
        return config

    @cached_property
    def mask_members(self) -> dict[str, str]:
        """In our own way of storing masks: class -> ending of its mask's member."""
        if self.spec.kind == "segmentation" and self.member == JSON:
            # readers of tars, ours and webdataset's, take endings in lower case
            return {c: mask_member(self.name, c).lower() for c in self.spec.classes}
        return {}

    @cached_property
    def place(self) -> str:
        """Where in a sample it lies, for messages."""
        return f"json field {self.field!r}" if self.member == JSON else f"member {self.member!r}"

    def value(self, read: Read, where: str = "") -> Any | None:
        """The sample's value in the forms of `datamodules.annotations`; None: not annotated.

        Raises:
            ConfigError: no JSON, or a value of another form.
        """
        data = read(self.member)
        if data is None:
            return None
        where = _at(where, self.place)
        if self.values:
            return {"known": list(self.spec.classes)}
        raw = _lookup(parse_json(data, where), self.field) if self.member == JSON else _text(data)
        return None if raw is None else FORMS[self.spec.kind](self.spec, raw, where)

    def masks(self, value: Any, read: Read, where: str = "") -> dict[str, np.ndarray]:
        """class -> (H, W) uint8: how many raters marked each pixel, 0 or 1 where there was one; a
        known class without a mask is empty."""
        if self.spec.kind != "segmentation":
            return {}
        place = _at(where, self.place)
        if self.values:
            data = read(self.member)
            return self._split(decode_label_map(data or b"", place), place)
        found = {}
        for name, rles in value.get("rles", {}).items():
            planes = [decode_rle(rle, f"{place}, class {name!r}") for rle in rles]
            if len({plane.shape for plane in planes}) > 1:
                raise ConfigError(
                    f"{place}: the RLEs of {name!r} are of different sizes; export them again"
                )
            found[name] = np.bitwise_or.reduce(planes)
        raters = value.get("raters", {})
        for name, member in self.mask_members.items():
            if (data := read(member)) is not None:
                found[name] = _decode(data, raters.get(name, 1), _at(where, f"member {member!r}"))
        return found

    def _split(self, label_map: np.ndarray, where: str) -> dict[str, np.ndarray]:
        known = np.unique(label_map)
        if strange := [int(v) for v in known if v and v not in self.values]:
            raise ConfigError(
                f"{where}: the label map holds {strange[0]}; expected 0 or {list(self.values)}"
            )
        return {
            name: (label_map == value).astype(np.uint8)
            for name, value in zip(self.spec.classes, self.values, strict=True)
        }


def _decode(data: bytes, raters: int, where: str) -> np.ndarray:
    return decode_mask(data, where) if raters == 1 else decode_counts(data, raters, where)


def _at(where: str, place: str) -> str:
    return f"{where}, {place}" if where else place


def parse_json(data: bytes, where: str = "") -> dict[str, Any]:
    """A JSON object; ConfigError for anything else, however it is broken."""
    where = f"{where}: " if where else ""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}the json cannot be read ({error}); replace it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}the json is a {type(content).__name__}; expected an object")
    return content


def _check_values(spec: AnnotationSpec, member: str, values: Any, where: str) -> tuple[int, ...]:
    if member == JSON or spec.kind != "segmentation":
        if values is not None:
            raise ConfigError(f"{where}: values is for label maps; name their `member`, or drop it")
        if spec.kind not in ("multiclass", "ordinal") and member != JSON:
            raise ConfigError(f"{where}: member is {member!r}; {spec.kind} is read from a json")
        return ()
    values = list(range(1, len(spec.classes) + 1)) if values is None else list(values)
    if len(set(values)) != len(spec.classes) or not all(
        isinstance(v, int) and 0 < v < 2**16 for v in values
    ):
        raise ConfigError(
            f"{where}: values is {values}; expected a whole number above 0 for each of the "
            f"{len(spec.classes)} classes, each once"
        )
    return tuple(values)


def _lookup(content: dict[str, Any], field: str) -> Any:
    found: Any = content
    for key in field.split("."):
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def _text(data: bytes) -> str | int:
    text = data[:1024].decode("utf-8", "replace").strip()
    return int(text) if text.isdecimal() else text
