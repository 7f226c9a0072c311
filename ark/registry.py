"""Known checkpoints: `ark models`, and names for `ark.load`. The list is `ark/models.yaml`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from ark.download import download
from ark.errors import ConfigError
from ark.published.config import CARD, CONFIG, WEIGHTS

log = logging.getLogger("ark")
LIST = Path(__file__).with_name("models.yaml")
MORE = "ARK_MODELS"  # further lists, joined by ":"
CACHE = "ARK_CACHE"  # folder of what is fetched
FORMATS = ("ark", "weights", "ark6", "ark_plus", "foundation_x", "foundation_x_plus")
SOURCES = ("repo", "url", "pip", "request")


@dataclass(frozen=True)
class Known:
    """A checkpoint of the list; `ark/models.yaml` says what each field means."""

    name: str
    about: str
    format: str
    license: str
    source: Mapping[str, Any]
    size: int | None = None
    sha256: str | None = None
    tasks: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The source in a few words."""
        kind = next(kind for kind in SOURCES if kind in self.source)
        value = self.source[kind]
        return {"request": "ask at ", "pip": "pip install "}.get(kind, "") + str(value)

    @property
    def use(self) -> str:
        """What a user types to have it."""
        if self.format == "weights":
            start = f"pip:{self.source['pip']}" if "pip" in self.source else "FILE"
            return f"--model.backbone.weights={start}"
        if self.format == "ark":
            return f"ark.load({self.name!r})"
        return f"ark import {self.format} FILE FOLDER"


def known() -> dict[str, Known]:
    """All lists together.

    Raises:
        ConfigError: a list is missing or wrong, naming its file, entry and field.
    """
    found: dict[str, Known] = {}
    for path in [LIST, *map(Path, filter(None, os.environ.get(MORE, "").split(":")))]:
        try:
            entries = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{MORE}: {path} cannot be read: {error}") from error
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: expected names, each with about, format, license, source")
        for name, entry in entries.items():
            found[str(name)] = _entry(path, str(name), entry)
    return found


def _entry(path: Path, name: str, entry: Any) -> Known:
    names = [f.name for f in fields(Known) if f.name != "name"]
    if not isinstance(entry, dict) or set(entry) - set(names):
        raise ConfigError(f"{path}: {name}: expected a mapping with some of {names}")
    for required in ("about", "format", "license", "source"):
        if not entry.get(required):
            raise ConfigError(f"{path}: {name}: {required} is missing")
    if entry["format"] not in FORMATS:
        raise ConfigError(f"{path}: {name}: format {entry['format']!r}; expected one of {FORMATS}")
    source = entry["source"]
    if not isinstance(source, dict) or not set(source) & set(SOURCES):
        raise ConfigError(f"{path}: {name}: source {source!r}; expected one of {SOURCES}")
    if "url" in source and not _files(source):
        raise ConfigError(
            f"{path}: {name}: source.files is missing: of each file its size and sha256"
        )
    return Known(name, **entry)


def _files(source: Mapping[str, Any]) -> bool:
    files = source.get("files")
    return isinstance(files, dict) and all(
        isinstance(facts, dict) and "sha256" in facts for facts in files.values()
    )


def fetch(model: Known, revision: str | None = None) -> Path:
    """The local folder of a model in format "ark"; of others it says how to have them.

    Raises:
        ConfigError: it cannot be fetched, or must be asked for.
    """
    if model.format != "ark":
        raise ConfigError(
            f"{model.name}: no model that loads by its name: {model.where}; then {model.use}"
        )
    if "repo" in model.source:
        from ark.published.hub import fetch as fetch_repository

        return fetch_repository(model.source["repo"], revision or model.source.get("revision"))
    folder, base = cache() / model.name, str(model.source["url"]).rstrip("/")
    for name, facts in model.source["files"].items():
        if name not in (CONFIG, WEIGHTS, CARD):
            raise ConfigError(f"{model.name}: source.files: {name!r} is no file of a model")
        file = folder / facts["sha256"] / name
        download(f"{base}/{name}", file, facts["sha256"], facts.get("size"))
        _place(file, folder / name)
    return folder


def _place(file: Path, name: Path) -> None:
    """Under `name` stands what the list says now; older content keeps its own folder."""
    half = name.with_name(f".{name.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    half.symlink_to(file.relative_to(name.parent))
    os.replace(half, name)


def cache() -> Path:
    """Where fetched models are kept: ARK_CACHE, or ark below XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ark"


def models(name: str | None = None, fetched: bool = False) -> None:
    """Lists known checkpoints, or says all of one.

    Args:
        name: of one of them.
        fetched: fetch it too; of a model in format "ark".

    Raises:
        ConfigError: no such name.
    """
    found = known()
    if name is None:
        rows = [[m.name, m.format, _megabytes(m.size), m.license, m.where] for m in found.values()]
        print(tabulate(rows, ["name", "format", "MB", "license", "source"], tablefmt="simple"))
        print("\n`ark models NAME` says more.")
        return
    if name not in found:
        raise ConfigError(f"models: {name!r}; known are {list(found)}")
    model = found[name]
    print(
        f"{name}: {' '.join(model.about.split())}\n"
        f"  source   {model.where}\n"
        f"  license  {model.license}\n"
        f"  size     {_megabytes(model.size) + ' MB' if model.size else 'not known'}\n"
        f"  sha256   {model.sha256 or 'not known: compare what the authors tell you'}\n"
        f"  tasks    {', '.join(model.tasks) or 'none, or not listed'}\n"
        f"  use      {model.use}"
    )
    if fetched:
        print(f"  folder   {fetch(model)}")


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.1f}" if size else ""
