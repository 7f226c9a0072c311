"""`config.json` of a published model: what it holds, and what of a foreign one is refused.

The part of Ark stands under "ark". Beside it a backbone alone has timm's own keys, so that
`timm.create_model("local-dir:FOLDER", pretrained=True)` reads the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ark.errors import ConfigError
from ark.published.schema import check_architecture, check_facts

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
VERSION = 1  # of the format
Parts = Literal["heads", "backbone"]


@dataclass
class Facts:
    """What a published model says of itself.

    Args:
        architecture: see `Network.architecture`.
        parts: "heads": all of the network; "backbone": the weights are timm's model alone.
        which: "teacher" or "student", or where else the weights come from.
        mean, std: of the three channels, in 0..1, that the network subtracts and divides by.
        precision: of the stored weights: "float32", "float16" or "bfloat16".
        sha256: of the file of weights.
        name: of the run, or what the model is called.
        recipe: the run's config.yaml.
        data: dataset -> index, sha256 of it, samples by split, license, attribution.
        metrics: task -> metric -> {"value": test split, "interval": [low, high] at 95 %}.
        code: commit, versions of the libraries, when it ran.
        license: of the model, as an SPDX name such as apache-2.0.
        start: what the weights began as (see `ark.published.lineage`); None: random.
    """

    architecture: dict[str, Any]
    parts: Parts = "heads"
    which: str = "teacher"
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    precision: str = "float32"
    sha256: str = ""
    name: str = "model"
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    start: dict[str, Any] | None = None

    @property
    def image_size(self) -> int:
        """Pixels of a side of the square input."""
        return int(self.architecture["backbone"]["image_size"])


def write_config(folder: Path, facts: Facts, timm: Mapping[str, Any] | None = None) -> None:
    """
    Args:
        timm: further keys at the top, of a backbone alone.
    """
    content = {
        "library_name": "timm" if timm else "ark",
        **(timm or {}),
        "ark": {"format": VERSION, **asdict(facts)},
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_config(folder: Path) -> Facts:
    """
    Raises:
        ConfigError: names the file and what is wrong: missing, not JSON, not Ark's, too new.
    """
    path = folder / CONFIG
    try:
        mine = json.loads(path.read_text())["ark"]
        known = {f.name for f in fields(Facts)}
        version = int(mine["format"])
        facts = Facts(**{name: value for name, value in mine.items() if name in known})
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no {CONFIG}; expected a folder that `ark export` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ConfigError(
            f"{path}: is no configuration of a published Ark model: {error!r}"
        ) from error
    if version < 1:
        raise ConfigError(f"{path}: ark.format is {version}; expected 1 to {VERSION}")
    if version > VERSION:
        raise ConfigError(
            f"{path}: format {version}; this Ark reads formats up to {VERSION}: install a newer one"
        )
    check_facts(path, facts)
    return facts


def check_weights(folder: Path, facts: Facts) -> Path:
    """The file of weights, if its bytes are those that were published.

    Raises:
        ConfigError: it is missing, or has another sha256.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{folder}: no {WEIGHTS}")
    if (found := sha256(path)) != facts.sha256:
        raise ConfigError(
            f"{path}: sha256 is {found}, but {CONFIG} says {facts.sha256 or 'none'}; the file is "
            "cut off or changed: fetch it again"
        )
    return path


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_trusted(
    path: str | Path, architecture: Mapping[str, Any], allow: Sequence[str] = ()
) -> None:
    """Refuses a foreign configuration that names other code than Ark's own heads.

    Args:
        allow: class paths that the user trusts.

    Raises:
        ConfigError: names the task and what it asks for. Nothing was imported.
    """
    check_architecture(path, architecture)
    args = architecture["backbone"].get("args") or {}
    reads = sorted(_READS & set(args))
    if _says_normalisation(args.get("pretrained_cfg_overlay")):
        reads = [name for name in reads if name != "pretrained_cfg_overlay"]
    if reads:
        raise ConfigError(
            f"{path}: backbone.args.{reads[0]} {args[reads[0]]!r} would read other files; remove it"
        )
    for task in architecture["tasks"]:
        where = f"{path}: head of task {task.get('dataset')}/{task.get('name')}"
        class_path = str(task.get("head", {}).get("class_path"))
        if class_path in allow:
            continue
        if not class_path.startswith("heads."):
            raise ConfigError(
                f"{where}: class_path {class_path!r} is not of Ark's own heads; nothing of it was "
                f"imported. If you trust it: ark.load(..., allow=[{class_path!r}]), or of commands "
                f"--allow='[\"{class_path}\"]'"
            )
        for key, value in _walk(task["head"].get("init_args") or {}):
            _check_value(where, key, value)


# of timm.create_model
_READS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def _says_normalisation(overlay: Any) -> bool:
    """Whether it is numbers alone, for the input's mean and standard deviation."""
    return (
        isinstance(overlay, Mapping)
        and overlay.keys() <= {"mean", "std"}
        and all(
            isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values)
            for values in overlay.values()
        )
    )


def _check_value(where: str, key: str, value: Any) -> None:
    # mmengine imports and calls whatever a dotted `type` names, and unpickles what init_cfg names
    names_code = key in ("type", "_scope_", "class_path", "_target_") and "." in str(value)
    if names_code and not re.fullmatch(r"mmdet\.\w+", str(value)):  # mmdet's own, by its scope
        raise ConfigError(
            f"{where}: {key} {value!r} names code by its import path; nothing of it was imported"
        )
    if key == "init_cfg" and value:
        raise ConfigError(f"{where}: init_cfg {value!r} would load other weights; remove it")
    if isinstance(value, str) and value.endswith((".py", ".pth", ".pt", ".pkl", ".yaml", ".yml")):
        raise ConfigError(
            f"{where}: {key} {value!r} is a file, which a published model must not need"
        )


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    yield key, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(inner, key)
