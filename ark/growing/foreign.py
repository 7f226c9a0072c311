"""A start in a file that is not Ark's own: the papers' checkpoints and encoders of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ark.errors import ConfigError
from ark.growing.source import Source, Which
from ark.importing.making import (
    Kind,
    authors_license,
    check_which,
    find,
    kind_of,
    make,
    normalise,
    whose,
)
from ark.importing.options import Options
from ark.importing.reading import tensors
from ark.importing.record import Record
from ark.published.config import sha256


def foreign_source(
    path: Path, content: Mapping[str, Any], which: Which, backbone: Mapping[str, Any] | None
) -> Source:
    """What `ark import` would make of a file, without writing it.

    Args:
        content: of the file, from `ark.importing.reading.read`.
        backbone: {"name", "image_size", "args"} of the run. An encoder's file is read as this
            model where it fits; else, and the papers' always, shapes say what it is.

    Raises:
        ConfigError: it is neither a checkpoint of Ark nor a file that can be imported.
    """
    state, place = tensors(content, which, path)
    kind = kind_of(state)
    check_which(kind, which, place, path)
    try:
        source = _source(path, state, kind, backbone if kind == "encoder" else None)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Such options are those of `ark import {kind} {path} FOLDER`; --init_from "
            "then takes that folder"
        ) from error
    source.which = whose(kind, place)
    source.lineage = {
        "name": path.name,
        "which": source.which,
        "sha256": sha256(path),
        "license": authors_license(kind),
    }
    return source


def _source(
    path: Path, state: Mapping[str, Tensor], kind: Kind, backbone: Mapping[str, Any] | None
) -> Source:
    if backbone is not None:
        options = Options(backbone["name"], backbone.get("args") or {})
        try:
            return _made(path, state, kind, options)
        except ConfigError as error:
            misfit = error
        try:
            return _made(path, state, kind, Options())
        except ConfigError:  # the run's own choice is the likelier mistake
            raise misfit from None
    return _made(path, state, kind, Options())


def _made(path: Path, state: Mapping[str, Tensor], kind: Kind, options: Options) -> Source:
    record = Record()
    found = find(kind, state, options, record)
    network = make(found, record, path)
    normalise(network, found.imagenet, record)
    mean, std = (b.flatten().tolist() for b in (network.backbone.mean, network.backbone.std))
    said = [
        f"init_from: {path} as `ark import {kind}` reads it; the options below are that command's",
        record.table(),
        *(f"note: {note}" for note in record.notes),
    ]
    whole = network.state_dict()
    return Source(str(path), "file", network.architecture, whole, mean, std, said=said)
