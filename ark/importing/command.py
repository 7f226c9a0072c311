"""`ark import`: a checkpoint that others wrote becomes a model that `ark.load` reads."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ark.errors import ConfigError
from ark.importing.making import (
    Kind,
    authors_license,
    check_which,
    find,
    make,
    normalise,
    whose,
    without,
)
from ark.importing.options import LastShift, Options, check_classes, check_options
from ark.importing.reading import Which, read, tensors
from ark.importing.record import Record
from ark.network import Network
from ark.published.config import CARD, CONFIG, WEIGHTS, Facts, sha256
from ark.published.writing import write_model

log = logging.getLogger("ark")


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
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; expected a new folder after the checkpoint's file")
    if not overwrite and any((folder / part).exists() for part in (CONFIG, WEIGHTS, CARD)):
        raise ConfigError(f"{folder} holds a model; choose another folder, or --overwrite=true")
    state, place = tensors(read(file), which, file)
    check_which(kind, which, place, file)
    record = Record()
    state = without(state, drop or [], record)
    options = Options(
        backbone, backbone_args or {}, image_size, last_shift, heads, classes or {}, first_class
    )
    check_options(kind, options)
    found = find(kind, state, options, record)
    check_classes(options, [task.key for task in found.tasks])
    network = make(found, record, file)
    normalise(network, found.imagenet, record, mean, std)
    facts = _facts(network, record, kind, Path(file), place)
    facts.name = name or Path(file).name.split(".")[0]
    facts.license = license or authors_license(kind)
    write_model(folder, network, facts)
    log.info("%s", record.table())
    for note in record.notes:
        log.info("note: %s", note)
    log.info("%s: %s of %s, heads %s", folder, place, file, list(network.tasks) or "none")


def _facts(network: Network, record: Record, kind: Kind, path: Path, place: str) -> Facts:
    origin = {"kind": kind, "file": path.name, "sha256": sha256(path), "part": place}
    return Facts(
        network.architecture,
        parts="heads" if network.tasks or network.architecture["projector"] else "backbone",
        which=whose(kind, place),
        code={
            "imported from": f"{path.name} ({kind}, {place})",
            "ark": version("ark-foundation"),
            "timm": version("timm"),
            "import": {**origin, **record.facts()},
        },
    )
