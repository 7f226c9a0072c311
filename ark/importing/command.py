"""`ark import`: a checkpoint that others wrote becomes a model that `ark.load` reads."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ark.errors import ConfigError
from ark.importing.encoders import unwrapped
from ark.importing.foundation import ENCODER, find_foundation
from ark.importing.papers import find_ark
from ark.importing.parts import Found, LastShift, Options, fill, find_encoder, own_parts
from ark.importing.reading import FLAT, PLACES, Which, read, tensors
from ark.importing.record import Record
from ark.network import Network
from ark.published.config import CARD, CONFIG, WEIGHTS, Facts, sha256
from ark.published.writing import write_model
from ark.registry import known

log = logging.getLogger("ark")
Kind = Literal["ark6", "ark_plus", "foundation_x", "foundation_x_plus", "encoder"]


def import_model(
    kind: Kind,
    file: str,
    output: str,
    which: Which = "teacher",
    backbone: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    last_shift: LastShift = "origin",
    heads: list[str] | None = None,
    classes: dict[str, list[str]] | None = None,
    first_class: int | None = None,
    drop: list[str] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    name: str | None = None,
    license: str = "",
    overwrite: bool = False,
) -> None:
    """Writes a published model from a checkpoint of the papers, or a backbone from any encoder.

    Args:
        kind: whose file it is: "ark6" (MICCAI 2023), "ark_plus" (Nature 2025), "foundation_x",
            "foundation_x_plus", or "encoder": weights of timm, torchvision, transformers' DINOv2
            (RAD-DINO), DINO or MAE, of which the backbone alone is written.
        file: the checkpoint.
        output: new folder.
        which: the network of the two; a file with one alone gives that one.
        backbone: timm's model, where shapes do not tell it.
        backbone_args: further arguments of timm.create_model.
        image_size: pixels of a side of the input; by default the file's own or the paper's.
        last_shift: whether Swin shifts windows also where the map is not larger than a window:
            "origin" as the file's authors did (Foundation X keeps it, Ark and timm do not), "keep"
            or "off".
        heads: dataset/task of each classification head in the file's order; "-" leaves one out.
        classes: {dataset/task: [names]} of datasets that are not the papers', or in another order.
        first_class: the output of the detectors' class layers that is the first class.
        drop: beginnings of names that are left out.
        mean, std: three numbers in 0..1 each, that the input is normalised with; by default timm's.
        name: of the model; the file's if not given.
        license: of the weights, as an SPDX name; of the papers' files what `ark models` says.
        overwrite: replace the files of an earlier import.

    Raises:
        ConfigError: the file is unreadable, unsafe or another network than it is said to be.
    """
    folder = Path(output)
    if not overwrite and any((folder / part).exists() for part in (CONFIG, WEIGHTS, CARD)):
        raise ConfigError(f"{folder} holds a model; choose another folder, or --overwrite=true")
    state, place = tensors(read(file), which, file)
    if kind == "ark6" and which == "student" and place == FLAT:
        raise ConfigError(f"{file}: a flat file of Ark-6 holds the teacher alone; --which=teacher")
    record = Record()
    state = _kept(state, drop or [], record)
    options = Options(
        backbone, backbone_args or {}, image_size, last_shift, heads, classes or {}, first_class
    )
    found = find(kind, state, options, record)
    network = make(found, record, file)
    _normalise(network, found.imagenet, mean, std, record)
    facts = _facts(network, record, kind, Path(file), place)
    facts.name = name or Path(file).name.split(".")[0]
    facts.license = license or _authors_license(kind)
    write_model(folder, network, facts)
    log.info("%s", record.table())
    for note in record.notes:
        log.info("note: %s", note)
    log.info("%s: %s of %s, heads %s", folder, place, file, list(network.tasks) or "none")


def find(kind: Kind, state: dict[str, Tensor], options: Options, record: Record) -> Found:
    """What the file holds, as a network's architecture and tensors."""
    if kind in ("ark6", "ark_plus"):
        return find_ark(state, options, record, bce=kind == "ark6")
    if kind in ("foundation_x", "foundation_x_plus"):
        return find_foundation(state, options, record)
    inner, prefix = unwrapped(state, record)
    return find_encoder(inner, options, record, prefix, keeps_shift=prefix == ENCODER)


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


def _kept(state: dict[str, Tensor], drop: list[str], record: Record) -> dict[str, Tensor]:
    left = tuple(drop)
    for name in [name for name in state if left and name.startswith(left)]:
        record.drop(name, "left out by --drop")
    return {name: tensor for name, tensor in state.items() if name not in record.dropped}


def _normalise(
    network: Network,
    imagenet: bool,
    mean: list[float] | None,
    std: list[float] | None,
    record: Record,
) -> None:
    """Sets what the input is normalised with; no file says it."""
    said = []
    usual = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if imagenet else (None, None)
    for option, asked, common in (("mean", mean, usual[0]), ("std", std, usual[1])):
        values = asked if asked is not None else common
        buffer = getattr(network.backbone, option)
        if values is not None:
            if len(values) != 3:
                raise ConfigError(f"--{option} is {values}; expected three numbers, one a channel")
            buffer.copy_(buffer.new_tensor(values).view(3, 1, 1))
        said.append(f"{option} {[round(value, 4) for value in buffer.flatten().tolist()]}")
    record.notes.append(
        f"input normalised with {', '.join(said)}; if its authors did otherwise: --mean, --std"
    )


def _authors_license(kind: Kind) -> str:
    """Of the papers' files; of an encoder nobody knows."""
    model = known().get(kind)
    return model.license if model else ""


def _whose(kind: Kind, place: str) -> str:
    if place in PLACES["teacher"] or (kind == "ark6" and place == FLAT):
        return "teacher"
    return "file" if kind == "encoder" or place == FLAT else "student"


def _facts(network: Network, record: Record, kind: Kind, path: Path, place: str) -> Facts:
    origin = {"kind": kind, "file": path.name, "sha256": sha256(path), "part": place}
    return Facts(
        network.architecture,
        parts="heads" if network.tasks or network.architecture["projector"] else "backbone",
        which=_whose(kind, place),
        code={
            "imported from": f"{path.name} ({kind}, {place})",
            "ark": version("ark-foundation"),
            "timm": version("timm"),
            "import": {**origin, **record.facts()},
        },
    )
