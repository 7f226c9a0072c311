"""What an import makes of a file: an architecture and its tensors, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ark.backbone import Backbone
from ark.errors import ConfigError
from ark.importing.encoders import fitted, imagenet, to_timm
from ark.importing.record import Record
from ark.importing.tasks import classification
from ark.importing.variants import FIX, find_variant, swin_side, vit_side
from ark.types import TaskSpec

LastShift = Literal["origin", "keep", "off"]
SKIP = "-"  # in --heads: leave this one out


@dataclass(frozen=True)
class Options:
    """What the user says of the file; see `ark.importing.command.import_model`."""

    backbone: str | None = None
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    last_shift: LastShift = "origin"
    heads: Sequence[str] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    first_class: int | None = None


@dataclass
class Found:
    """
    Attributes:
        backbone, projector, tasks: as `Network` takes them.
        state: tensors by the names of `Network`.
        optional: task -> why it is left out, "" where only a missing tensor would be why.
        imagenet: the input is normalised by ImageNet's mean and deviation, whatever timm's model
            has.
    """

    backbone: dict[str, Any]
    state: dict[str, Tensor]
    projector: dict[str, Any] | None = None
    tasks: list[TaskSpec] = field(default_factory=list)
    optional: dict[str, str] = field(default_factory=dict)
    imagenet: bool = False


def find_encoder(
    state: Mapping[str, Tensor],
    options: Options,
    record: Record,
    prefix: str = "",
    keeps_shift: bool = False,
    sides: Mapping[int, int] | None = None,
) -> Found:
    """The backbone of a file.

    Args:
        state: the encoder's tensors alone, in any layout of `ark.importing.encoders`.
        prefix: what stood before their names in the file.
        keeps_shift: its origin shifts windows also where the map is not larger than a window.
        sides: window -> pixels of the input, where the file does not say them.
    """
    named = to_timm(state, record, prefix)
    side = options.image_size or swin_side(state) or vit_side(named)
    backbone = _variant(named, options, side, sides, record)
    if "swin" in backbone["name"]:
        _set_shift(backbone, options.last_shift, keeps_shift, record)
    kept = fitted(named, Backbone(**backbone).model, record)
    found = Found(backbone, {f"backbone.model.{name}": tensor for name, tensor in kept.items()})
    found.imagenet = imagenet(state, record)
    return found


def _variant(
    named: Mapping[str, Tensor],
    options: Options,
    side: int | None,
    sides: Mapping[int, int] | None,
    record: Record,
) -> dict[str, Any]:
    """The timm model, as asked for or as shapes tell."""
    if options.backbone is None:
        backbone = find_variant(named, side)
        window = backbone["args"].get("window_size") or _window(backbone["name"])
        if side is None and sides and isinstance(window, int) and window in sides:
            backbone["image_size"] = sides[window]
            record.notes.append(
                f"the file does not say its image size; {sides[window]} pixels are the paper's "
                f"with window {window}; another: --image_size"
            )
    else:
        backbone = {"name": options.backbone, "image_size": side or 224, "args": {}}
    backbone["args"] = {**backbone["args"], **options.backbone_args}
    return backbone


def _window(name: str) -> int | None:
    return next((int(part[6:]) for part in name.split("_") if part.startswith("window")), None)


def _set_shift(
    backbone: dict[str, Any], asked: LastShift, keeps_shift: bool, record: Record
) -> None:
    """Spec foundation_x.md, "Semantic trap": timm's `always_partition` shifts everywhere."""
    keep = keeps_shift if asked == "origin" else asked == "keep"
    if keep:
        backbone["args"]["always_partition"] = True
    origin = "as in the file's origin" if keep == keeps_shift else "NOT as in the file's origin"
    what = "are shifted and masked also" if keep else "are not shifted (timm's, Ark's way)"
    record.notes.append(
        f"Swin windows {what} where the map is not larger than a window, {origin}"
        f" (always_partition={keep}; --last_shift={'off' if keep else 'keep'} for the other)"
    )
    window = backbone["args"].get("window_size") or _window(backbone["name"])
    step = 32 * window if isinstance(window, int) else 1
    if keep and backbone["image_size"] % step:
        record.notes.append(
            f"features equal the origin's only at image sizes that are multiples of {step}: "
            "elsewhere the origin pads before it shifts windows, timm after"
        )


def add_linear_heads(
    found: Found,
    state: Mapping[str, Tensor],
    prefix: str,
    usual: Sequence[str],
    options: Options,
    record: Record,
    bce: bool = False,
) -> None:
    """One Linear a dataset, `PREFIX.NUMBER`, as classification heads by name.

    Args:
        usual: the papers' task of each number.
        bce: multi-class heads learned with binary cross-entropy (Ark-6).

    Raises:
        ConfigError: another number of heads, or of outputs, than the tasks have.
    """
    begin = f"{prefix}."
    numbers = sorted({int(n[len(begin) :].split(".")[0]) for n in state if n.startswith(begin)})
    keys = list(options.heads if options.heads is not None else usual)
    if not numbers and keys:
        raise ConfigError(
            f"no tensor begins with {begin!r}, so the file has no heads; leave them out with "
            "--heads='[]', or say `ark import encoder` for the backbone alone"
        )
    if numbers != list(range(len(keys))):
        raise ConfigError(
            f"{prefix}: the file has heads {numbers}, but {len(keys)} datasets are named ({keys}); "
            f"name each head's task in the file's order: --heads='[dataset/task, ...]', {SKIP!r} "
            "leaves one out"
        )
    for number, key in zip(numbers, keys, strict=True):
        source = f"{prefix}.{number}"
        if key == SKIP:
            for name in state:
                if name.startswith(f"{source}."):
                    record.drop(name, "left out by --heads")
            continue
        task = classification(key, options.classes, bce)
        found.state |= _linear_head(state, source, task, record)
        found.tasks.append(task)


def _linear_head(
    state: Mapping[str, Tensor], source: str, task: TaskSpec, record: Record
) -> dict[str, Tensor]:
    """One Linear of the file as a classification head.

    Raises:
        ConfigError: it is not whole, or has not as many outputs as the task has classes.
    """
    parts = [f"{source}.{name}" for name in ("weight", "bias")]
    if missing := [name for name in parts if name not in state]:
        raise ConfigError(
            f"{missing[0]} is missing, of the head of {task.key}; the file is not whole. To leave "
            f"this head out write {SKIP!r} in its place in --heads"
        )
    weight = state[f"{source}.weight"]
    if len(weight) != len(task.classes):
        raise ConfigError(
            f"{source}.weight has {len(weight)} outputs, but {task.key} has {len(task.classes)} "
            f"classes {list(task.classes)}; the file was trained on other datasets or in another "
            "order: name them with --heads, or the classes with "
            f"--classes='{{{task.key}: [...]}}'"
        )
    found = {}
    for name in ("weight", "bias"):
        target = f"heads.{task.key}.linear.{name}"
        found[target] = state[f"{source}.{name}"]
        record.use(f"{source}.{name}", target)
    return found


def fill(network: nn.Module, state: Mapping[str, Tensor], record: Record, path: Any) -> None:
    """Loads strictly, but for what Ark has and no other file.

    Raises:
        ConfigError: tensors have no place, are missing or of another shape.
    """
    own = network.state_dict()
    where = f"{path} does not fit the network"
    if unknown := [name for name in state if name not in own]:
        raise ConfigError(
            f"{where}: {len(unknown)} tensors have no place, such as {unknown[:3]}; {FIX}, or "
            "leave them out with --drop=BEGINNING_OF_NAME"
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(
                f"{path}: {name} holds numbers that are infinite or none (NaN); the file is "
                "damaged, or its training diverged: take an earlier one"
            )
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}; "
                f"{FIX}"
            )
    for name in own:
        if name not in state:
            if (why := own_parts(name)) is None:
                raise ConfigError(f"{where}: {name} is missing; the file is not whole, or {FIX}")
            record.missing[name] = why
    network.load_state_dict(dict(state), strict=False)


def own_parts(name: str) -> str | None:
    """Why no file has this tensor; None: one must."""
    if name.endswith((".temperature", ".thresholds")):
        return "Ark's own, for calibration: temperature 1, thresholds 0.5"
    if name.endswith("dn_query_generator.label_embedding.weight"):
        return "noisy queries of training only; random start"
    if name.endswith("num_batches_tracked"):
        return "counter of BatchNorm, unused at inference"
    return None
