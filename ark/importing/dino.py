"""The localization parts of Foundation X and X+ as detectors of `heads.detection`.

The spec gives what is shared (X: the encoder; X+: also the decoder) and the output layers' names.
A number after a module, as in `transformer.decoder.3`, is a dataset's. A detector of which one
tensor is missing or uncertain is left out whole, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ark.importing.dino_names import place_of
from ark.importing.options import Options
from ark.importing.parts import Found
from ark.importing.record import Record
from ark.importing.tasks import FOUNDATION_BOXES, detection
from ark.types import TaskSpec

ENCODER, DECODER = "shared.detector_encoder.", "shared.detector_decoder."
LOCAL = re.compile(r"input_proj\.|label_enc|transformer\.|(bbox|class)_embed|backbone\.0\.Locnorm")
POINTS = 4  # a head and level (spec, Network); shapes only tell heads times points
LABELS = "embeddings of noisy labels, of training only; their number is not the task's classes"
TWICE = "the same tensor under a second name"


@dataclass
class Places:
    """Where the file's tensors go."""

    # (dataset's number; None: the file has one for all) -> name in a detector -> name in the file
    own: dict[int | None, dict[str, str]] = field(default_factory=dict)
    encoder: dict[str, str] = field(default_factory=dict)  # name in the shared part -> in the file
    unknown: list[str] = field(default_factory=list)


def is_localization(name: str) -> bool:
    return LOCAL.match(name) is not None


def find_detectors(
    state: Mapping[str, Tensor], found: Found, options: Options, record: Record
) -> None:
    """Adds the file's detectors to `found`; what cannot be placed is in `record`."""
    names = [name for name in state if is_localization(name)]
    places = _places(names, state, record)
    numbers = sorted(number for number in places.own if number is not None)
    if "level_embed.weight" not in places.encoder or not numbers:
        for name in names:
            record.dropped.setdefault(name, "no whole detector in the file")
        return
    init_args = _init_args(state, places)
    for number in numbers:
        if number < len(FOUNDATION_BOXES):
            task = detection(FOUNDATION_BOXES[number], init_args, options.classes)
            _add_detector(found, state, places, number, task, options, record)
    for target, source in places.encoder.items():
        # without a LayerNorm on the levels, the neck has no first part
        norms = init_args["level_norm"]
        full = ENCODER + (target if norms else target.replace("neck.1.", "neck."))
        found.state[full] = state[source]
        record.use(source, full)
    for name in names:
        if name not in record.used:
            record.dropped.setdefault(name, "of a detector, but of none that the spec names")
    record.notes.append(
        "detectors are numbered as the classification heads (the spec numbers segmentation so), "
        "with 4 points a head and level; where a class layer has one output more than the task has "
        "classes, classes begin at output 1 (COCO's ids)"
    )


def _add_detector(
    found: Found,
    state: Mapping[str, Tensor],
    places: Places,
    number: int,
    task: TaskSpec,
    options: Options,
    record: Record,
) -> None:
    """One dataset's detector, with what is uncertain about it."""
    classes, why = len(task.classes), ""
    every, own = places.own.get(None, {}), places.own[number]
    lent = task.head["init_args"]["shared"] == "decoder"
    for target, source in {**every, **own}.items():
        tensor = state[source]
        if ".cls_branches." in target:
            chosen = _columns(tensor, classes, options.first_class)
            if chosen is None:
                why = (
                    f"{len(tensor)} outputs for {classes} classes; which is the first is not known:"
                    " --first_class=NUMBER"
                )
                continue
            tensor = chosen
        shared = lent and target not in own and target.startswith(("decoder.", "memory_trans"))
        full = DECODER + target if shared else f"heads.{task.key}.detector.{target}"
        found.state[full] = tensor
        record.use(source, full)
    found.tasks.append(task)
    found.optional[task.key] = why


def _columns(tensor: Tensor, classes: int, first: int | None) -> Tensor | None:
    """The outputs of the task's classes. The original counts COCO's ids, which begin at 1."""
    if first is None:
        extra = len(tensor) - classes
        if extra not in (0, 1):
            return None
        first = extra
    return tensor[first : first + classes] if first + classes <= len(tensor) else None


def _places(names: list[str], state: Mapping[str, Tensor], record: Record) -> Places:
    places = Places()
    last = _count(names, r"transformer\.decoder\.(?:\d+\.)?layers\.(\d+)\.")
    for name in names:
        if name.startswith("label_enc"):
            record.drop(name, LABELS)
            continue
        shared, number, target = place_of(name, last)
        group = places.encoder if shared else places.own.setdefault(number, {})
        if target is None:
            continue
        if target in group:
            first = group[target]
            same = torch.equal(state[first], state[name])
            record.drop(name, TWICE if same else f"differs from {first}, whose place it has")
            if not same:  # which of them its origin uses is not certain: the detector is left out
                record.drop(first, f"differs from {name}, whose place it has")
                del group[target]
            continue
        group[target] = name
    return places


def _init_args(state: Mapping[str, Tensor], places: Places) -> dict[str, Any]:
    """Of `heads.detection.DetectionHead`."""
    one = "decoder.norm.weight" in places.own.get(None, {})
    found: dict[str, Any] = {
        "detector": "dino",
        "shared": "decoder" if one else "encoder",
        "level_norm": "neck.0.norms.0.weight" in places.encoder,
    }
    args = _arguments(state, places)
    return {**found, "detector_args": args} if args else found


def _arguments(state: Mapping[str, Tensor], places: Places) -> dict[str, Any]:
    """Arguments of `heads.detection.detr_presets.dino` that are not its defaults."""
    names = list(state)
    queries = next((s for p in places.own.values() for t, s in p.items() if "query_emb" in t), "")
    ffn = state.get("transformer.encoder.layers.0.linear1.weight", ())
    sampled = state.get("transformer.encoder.layers.0.self_attn.attention_weights.weight", ())
    levels, width = state["transformer.level_embed"].shape
    found = {
        "width": width,
        "heads": len(sampled) // (levels * POINTS),
        "encoder_layers": _count(names, r"transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": _count(names, r"transformer\.decoder\.(?:\d+\.)?layers\.(\d+)\."),
        "ffn": len(ffn),
        "queries": len(state.get(queries, ())),
        "input_bias": "input_proj.0.0.bias" in state,
    }
    usual = {
        "width": 256,
        "heads": 8,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "ffn": 2048,
        "queries": 900,
        "input_bias": False,
    }
    # what the file lacks is 0 here, and its detectors are left out for that later
    return {name: value for name, value in found.items() if value and value != usual[name]}


def _count(names: list[str], pattern: str) -> int:
    """One more than the highest number that the pattern finds."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1)
