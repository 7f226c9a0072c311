"""`ark export`: from a run to a model that others load."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ark.checkpoint import load_network
from ark.errors import ConfigError
from ark.network import Network
from ark.published import lineage
from ark.published.config import CARD, CONFIG, WEIGHTS, Facts, Parts
from ark.published.writing import only, write_model

log = logging.getLogger("ark")
LIBRARIES = ("ark-foundation", "torch", "timm", "segmentation-models-pytorch", "mmdet")


def export(
    run: str,
    output: str,
    which: Literal["teacher", "student"] = "teacher",
    parts: Parts = "heads",
    tasks: list[str] | None = None,
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    name: str | None = None,
    license: str = "",
    overwrite: bool = False,
) -> None:
    """Writes a model that `ark.load` reads: weights, config.json and a model card.

    Args:
        run: folder of a finished run, or a file in its checkpoints/.
        output: new folder.
        which: the network of the two.
        parts: "heads" is all of it; "backbone" is timm's model alone, which
            `timm.create_model("local-dir:OUTPUT", pretrained=True)` reads too.
        tasks: whose heads are written; all if not given.
        precision: of the stored weights. How much half precision changes is measured by
            tools/bench_load.py.
        name: of the model; the run's if not given.
        license: of the weights, as an SPDX name such as apache-2.0.
        overwrite: replace the files of an earlier export.

    Raises:
        ConfigError: no such run, an unknown task, or files in the way.
    """
    folder = Path(output)
    if not overwrite and any((folder / file).exists() for file in (CONFIG, WEIGHTS, CARD)):
        raise ConfigError(f"{folder} holds a model; choose another folder, or --overwrite=true")
    network = load_network(run, which)
    if unknown := [key for key in tasks or [] if key not in network.tasks]:
        raise ConfigError(f"tasks: {unknown[0]!r}; {run} has {list(network.tasks)}")
    facts = facts_of(Path(run), network, which)
    facts.parts, facts.precision, facts.license = parts, precision, license
    facts.name = name or facts.name
    write_model(folder, only(network, tasks) if tasks else network, facts)
    size = (folder / WEIGHTS).stat().st_size / 2**20
    log.info("%s: %s, %s, %.1f MB", folder, which, parts, size)


def facts_of(path: Path, network: Network, which: str) -> Facts:
    """What a run's folder says of its model; of a checkpoint without one, little."""
    folder = lineage.folder_of(path)
    recipe = lineage.read_recipe(folder)
    sessions = _json(folder / "sessions.json") or [{}]
    return Facts(
        network.architecture,
        which=which,
        name=recipe.get("run", {}).get("name") or folder.name,
        recipe=recipe,
        data=lineage.data_of(folder),
        metrics=_metrics(folder, which) if path.is_dir() else {},
        code=_code(sessions[-1]),
        start=lineage.start_of(folder),
    )


def _metrics(folder: Path, which: str) -> dict[str, Any]:
    results = (_json(folder / "results.json") or {}).get(which, {})
    intervals = (_json(folder / "intervals.json") or {}).get(which, {})
    return {
        task: {
            name: {"value": value, "interval": intervals.get(task, {}).get(name)}
            for name, value in found.items()
        }
        for task, found in results.items()
    }


def _code(session: dict[str, Any]) -> dict[str, Any]:
    git = session.get("git", {}).get("ark", {})
    found = {
        "began": session.get("began"),
        "commit": git.get("commit"),
    }
    found |= {name: version(name) for name in LIBRARIES}
    return {name: value for name, value in found.items() if value}


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
