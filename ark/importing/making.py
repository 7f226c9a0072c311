"""From a file's tensors to a network: `ark import` and `--init_from` both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ark.errors import ConfigError
from ark.importing.encoders import unwrapped
from ark.importing.filling import fill, own_parts
from ark.importing.foundation import ENCODER, find_foundation
from ark.importing.options import Options
from ark.importing.papers import find_ark
from ark.importing.parts import Found, find_encoder
from ark.importing.reading import FLAT, PLACES, Which
from ark.importing.record import Record
from ark.network import Network
from ark.registry import known

Kind = Literal["ark6", "ark_plus", "foundation_x", "foundation_x_plus", "encoder"]


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """Whose file it is, by the names that only the papers' have."""
    if any(name.startswith("omni_heads.") for name in state):
        return "ark6" if "projector.0.weight" in state else "ark_plus"
    if any(name.startswith(f"{ENCODER}classification_heads.") for name in state):
        one = any(name.startswith("transformer.decoder.layers.") for name in state)
        return "foundation_x_plus" if one else "foundation_x"
    return "encoder"


def authors_license(kind: Kind) -> str:
    """Of the papers' files; of an encoder nobody knows."""
    model = known().get(kind)
    return model.license if model else ""


def whose(kind: Kind, place: str) -> str:
    """Which network a place of the file is: "teacher", "student" or, not known, "file"."""
    if place in PLACES["teacher"] or (kind == "ark6" and place == FLAT):
        return "teacher"
    return "file" if kind == "encoder" or place == FLAT else "student"


def check_which(kind: Kind, which: Which, place: str, path: Any) -> None:
    """
    Raises:
        ConfigError: the student is asked for, of a file that holds the teacher alone.
    """
    if which == "student" and whose(kind, place) == "teacher":
        raise ConfigError(f"{path}: a flat file of Ark-6 holds the teacher alone; drop `student`")


def find(kind: Kind, state: Mapping[str, Tensor], options: Options, record: Record) -> Found:
    """What the file holds, as a network's architecture and tensors.

    Raises:
        ConfigError: it is another kind of file, or see `find_ark`, `find_foundation`.
    """
    _check_kind(kind, state, record)
    if kind in ("ark6", "ark_plus"):
        return find_ark(state, options, record, bce=kind == "ark6")
    if kind in ("foundation_x", "foundation_x_plus"):
        return find_foundation(state, options, record)
    inner, prefix = unwrapped(state, record)
    return find_encoder(inner, options, record, prefix, keeps_shift=prefix == ENCODER)


def _check_kind(kind: Kind, state: Mapping[str, Tensor], record: Record) -> None:
    """An encoder may be taken out of any file; what else is said must agree with its names.

    Raises:
        ConfigError: it is of other authors.
    """
    looks = kind_of(state)
    if "encoder" in (kind, looks) or looks == kind:
        return
    if looks.split("_")[0].rstrip("6") != kind.split("_")[0].rstrip("6"):
        raise ConfigError(
            f"by its tensors' names this is a file of {looks}, not {kind}; say {looks}"
        )
    why = f"by its tensors' names the file is of {looks}, but is imported as {kind}"
    if kind == "ark6":
        why += ": its multi-class head is scored as trained with binary cross-entropy (a sigmoid)"
    elif kind == "ark_plus":
        why += ": its multi-class head is scored as trained with cross-entropy (a softmax)"
    record.notes.append(why)


def make(found: Found, record: Record, path: Any) -> Network:
    """The network with the file's weights, without the optional heads that are not whole.

    Raises:
        ConfigError: tensors have no place or are missing.
    """
    found = _whole(found, record)
    network = Network(found.backbone, found.projector, found.tasks)
    fill(network, found.state, record, path)
    return network.eval()


def _whole(found: Found, record: Record) -> Found:
    """Leaves out optional heads that lack a tensor, and shared parts that none then uses."""
    if not found.optional:
        return found
    try:
        own = list(Network(found.backbone, found.projector, found.tasks).state_dict())
    except ConfigError as error:
        found.optional = {key: str(error) for key in found.optional}
        own = []
    parts = [n for n in own if n.startswith("shared.") and n not in found.state]
    for key, why in found.optional.items():
        mine = [n for n in own if n.startswith(f"heads.{key}.") and n not in found.state]
        lacking = [n for n in (*parts, *mine) if own_parts(n) is None]
        if why or lacking:
            why = why or f"{len(lacking)} tensors are missing, such as {lacking[0]}"
            _leave_out(found, f"heads.{key}.", f"{key} is left out: {why}", record)
            found.tasks = [task for task in found.tasks if task.key != key]
    if not any(task.key in found.optional for task in found.tasks):
        _leave_out(found, "shared.", "of detectors, of which none is whole", record)
    return found


def _leave_out(found: Found, prefix: str, why: str, record: Record) -> None:
    for target in [name for name in found.state if name.startswith(prefix)]:
        del found.state[target]
        for source in record.forget(target):
            if source not in record.used:
                record.drop(source, why)


def without(state: Mapping[str, Tensor], drop: Sequence[str], record: Record) -> dict[str, Tensor]:
    """The tensors but for those whose names begin so.

    Raises:
        ConfigError: none does.
    """
    left = tuple(drop)
    for begin in left:
        if not any(name.startswith(begin) for name in state):
            first = sorted({name.split(".")[0] for name in state})[:8]
            raise ConfigError(f"--drop: no tensor begins with {begin!r}; they begin with {first}")
    for name in [name for name in state if left and name.startswith(left)]:
        record.drop(name, "left out by --drop")
    return {name: tensor for name, tensor in state.items() if name not in record.dropped}


def normalise(
    network: Network,
    imagenet: bool,
    record: Record,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Sets what the input is normalised with; no file says it."""
    said = []
    usual = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if imagenet else (None, None)
    for option, asked, common in (("mean", mean, usual[0]), ("std", std, usual[1])):
        values = asked if asked is not None else common
        buffer = getattr(network.backbone, option)
        if values is not None:
            if len(values) != 3 or not all(0 <= value <= 1 for value in values):
                raise ConfigError(
                    f"--{option} is {values}; expected three numbers, one a channel, of pixels in "
                    "0..1 (those of bytes divided by 255)"
                )
            if option == "std" and not all(values):
                raise ConfigError(f"--std is {values}; it divides, so expected none to be 0")
            buffer.copy_(buffer.new_tensor(values).view(3, 1, 1))
        said.append(f"{option} {[round(value, 4) for value in buffer.flatten().tolist()]}")
    record.notes.append(
        f"input normalised with {', '.join(said)}; if its authors did otherwise: --mean, --std"
    )
