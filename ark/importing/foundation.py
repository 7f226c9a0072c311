"""Foundation X and X+: spec foundation_x.md, Reading its checkpoints.

Encoder and classification heads are mapped by the spec's table. Detectors are mapped by DINO's
public names (`ark.importing.dino`), each only if nothing of it is missing. Segmentation is not: the
spec names its modules, not their layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ark.errors import ConfigError
from ark.importing.dino import find_detectors, is_localization
from ark.importing.linear_heads import add_linear_heads
from ark.importing.options import Options
from ark.importing.parts import Found, find_encoder
from ark.importing.record import Record
from ark.importing.tasks import FOUNDATION

ENCODER = "backbone.0."
OTHERS = ("classification_heads.", "Locnorm", "segmentation_")  # beside the Swin, under ENCODER
SIDES = {7: 224, 12: 768}  # the paper's, by window
NO_MASKS = (
    "segmentation: its pyramid pooling and FPN are another network than smp's UPerNet, and the "
    "spec does not name their layers"
)
UNKNOWN = "not in the spec's table of names"


def find_foundation(state: Mapping[str, Tensor], options: Options, record: Record) -> Found:
    """
    Raises:
        ConfigError: no encoder under backbone.0, or heads and classes disagree.
    """
    inner = {
        name.removeprefix(ENCODER): tensor
        for name, tensor in state.items()
        if name.startswith(ENCODER) and not name.removeprefix(ENCODER).startswith(OTHERS)
    }
    if not inner:
        raise ConfigError(
            f"no tensor begins with {ENCODER!r}; is it a checkpoint of Foundation X? Its names "
            f"begin with {sorted({name.split('.')[0] for name in state})[:6]}"
        )
    found = find_encoder(inner, options, record, ENCODER, keeps_shift=True, sides=SIDES)
    _add_heads(found, state, options, record)
    find_detectors(state, found, options, record)
    for name in state:
        if name in record.used or name in record.dropped:
            continue
        if name.startswith(f"{ENCODER}segmentation_"):
            record.drop(name, NO_MASKS)
        elif not is_localization(name):
            record.drop(name, UNKNOWN)
    return found


def _add_heads(found: Found, state: Mapping[str, Tensor], options: Options, record: Record) -> None:
    add_linear_heads(found, state, f"{ENCODER}classification_heads", FOUNDATION, options, record)
    if options.heads is None and "chestx_det/findings" not in options.classes:
        record.notes.append(
            "the spec does not list the names of ChestX-Det's 13 classes; they are taken in "
            "alphabetical order, as configs/datasets/chestx_det.yaml has them (another: --classes)"
        )
