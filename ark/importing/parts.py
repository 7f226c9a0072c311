"""What an import makes of a file, an architecture and its tensors; and the backbone of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ark.backbone import Backbone
from ark.errors import ConfigError
from ark.importing.encoders import fitted, imagenet, to_timm
from ark.importing.options import LastShift, Options
from ark.importing.record import Record
from ark.importing.variants import find_variant, swin_side, vit_side
from ark.types import TaskSpec


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

    Raises:
        ConfigError: shapes do not tell the model, or it has not what `options` are about.
    """
    named = to_timm(state, record, prefix)
    side = options.image_size or swin_side(state) or vit_side(named)
    backbone = _variant(named, options, side, sides, record)
    if "swin" in backbone["name"]:
        _set_shift(backbone, options.last_shift, keeps_shift, record)
    elif options.last_shift != "origin":
        raise ConfigError(
            f"--last_shift={options.last_shift} is about Swin's windows; {backbone['name']!r} has "
            "none: drop it"
        )
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
