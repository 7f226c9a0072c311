"""The model card: what a published model is, for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from ark.published.config import WEIGHTS, Facts
from ark.published.lineage import Lineage, chain


def card(facts: Facts) -> str:
    """README.md, with the front matter that hubs read."""
    parts = [
        _front(facts),
        f"# {facts.name}",
        _about(facts),
        "## Use",
        _use(facts),
        *(["## Tasks", _tasks(facts)] if facts.architecture["tasks"] else []),
        "## Intended use and limits",
        LIMITS,
        "## Data",
        _data(facts.data),
        _part(facts.recipe),
        *(["## What the weights began as", _started(facts.start)] if facts.start else []),
        "## Training",
        _training(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


LIMITS = """\
For research, and as a start for fine-tuning. It has not been tested on data of other sources than
those below, is no medical device, and must not decide about patients. The scores are of test splits
from the same sources as the training data, whose biases (acquisition, population, labels made by
rules or by one reader) the model shares. The licenses of the data, and of what the weights began
as, may limit what they may be used for: see the tables below."""


def _front(facts: Facts) -> str:
    lines = [
        "---",
        *_license(facts.license),
        f"library_name: {'timm' if facts.parts == 'backbone' else 'ark'}",
        "tags:",
        "- ark",
        "- image-feature-extraction",
        *(f"- {kind}" for kind in sorted({task["kind"] for task in facts.architecture["tasks"]})),
        "---",
    ]
    return "\n".join(lines)


def _license(name: str) -> list[str]:
    """Hubs know SPDX names; of another license they take a name in words."""
    if re.fullmatch(r"[A-Za-z0-9.+-]+", name):
        return [f"license: {name.lower()}"]
    return ["license: other", f"license_name: {json.dumps(name or 'not-stated')}"]


def _about(facts: Facts) -> str:
    backbone, projector = facts.architecture["backbone"], facts.architecture.get("projector")
    projected = f", projected to {projector['width']}" if projector else ""
    tasks = facts.architecture["tasks"]
    heads = f"with the heads of {len(tasks)} tasks" if tasks else "alone"
    if "import" in facts.code:  # Ark did not train it
        made = f"imported into Ark from `{facts.code['import']['file']}`"
    else:
        made = "trained by Ark: one backbone on many datasets whose labels do not match"
    side = facts.image_size
    return (
        f"The {facts.which}'s `{backbone['name']}`{projected}, {heads}, {made}.\n\n"
        f"- Input: {side} x {side} pixels, gray or RGB, resized without regard to the aspect "
        f"ratio; bytes divided by 255, then mean {_numbers(facts.mean)} and standard deviation "
        f"{_numbers(facts.std)}. `ark.load` does this.\n"
        f"- Weights: `{WEIGHTS}`, {facts.precision}, sha256 `{facts.sha256}`.\n"
        f"- License of the weights: {facts.license or 'not stated'}."
    )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _use(facts: Facts) -> str:
    lines = ["```python", "import ark", "", 'model = ark.load("PATH OR OWNER/NAME")']
    if facts.architecture["tasks"]:
        lines.append('found = model("image.png")  # {task: {class: probability}}, boxes, masks')
    lines.append('pooled = model.features("image.png").pooled')
    if facts.parts == "backbone":
        lines += [
            "",
            "import timm",
            "",
            "# or hf-hub:OWNER/NAME",
            'backbone = timm.create_model("local-dir:PATH", pretrained=True)',
        ]
    return "\n".join([*lines, "```"])


def _tasks(facts: Facts) -> str:
    rows = []
    for task in facts.architecture["tasks"]:
        key = f"{task['dataset']}/{task['name']}"
        head = task["head"]["class_path"].rpartition(".")[2]
        rows.append(
            [key, task["kind"], ", ".join(task["classes"]), head, _scores(facts.metrics.get(key))]
        )
    titles = ["task", "kind", "classes", "head", "test split, 95 % interval by patient"]
    return tabulate(rows, titles, tablefmt="github", disable_numparse=True)


def _scores(metrics: Mapping[str, Any] | None) -> str:
    """Of a task, means over classes; the main metric comes first."""
    shown = []
    for name, found in (metrics or {}).items():
        if "/" not in name and found["value"] is not None:
            low, high = found.get("interval") or (None, None)
            interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            shown.append(f"{name} {found['value']:.3f}{interval}")
    return "; ".join(shown) or "not measured"


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "Not stated."
    rows = [
        [
            name,
            ", ".join(f"{count:,} {split}" for split, count in facts.get("samples", {}).items()),
            facts.get("license") or "not stated",
            facts.get("attribution") or "not stated",
            f"`{facts.get('sha256', '')[:12]}`" if facts.get("sha256") else "",
        ]
        for name, facts in data.items()
    ]
    titles = ["dataset", "samples", "license", "attribution", "index"]
    return tabulate(rows, titles, tablefmt="github", disable_numparse=True)


def _part(recipe: Mapping[str, Any]) -> str:
    """Few-shot: who is told of 697 samples must not think that all were used."""
    shots = recipe.get("data", {}).get("shots")
    return f"Trained on a drawn part of them: `data.shots` {json.dumps(shots)}." if shots else ""


def _started(start: Lineage | None) -> str:
    rows = [
        [
            before.get("name", ""),
            before.get("which", ""),
            before.get("license") or "not stated",
            "; ".join(
                f"{name} ({facts.get('license') or 'license not stated'})"
                for name, facts in (before.get("data") or {}).items()
            )
            or before.get("about", "not stated"),
            f"`{before['sha256'][:12]}`" if before.get("sha256") else "",
        ]
        for before in chain(start)
    ]
    titles = ["model", "which", "license", "trained on", "sha256"]
    return tabulate(rows, titles, tablefmt="github", disable_numparse=True)


def _training(facts: Facts) -> str:
    if not facts.code and not facts.recipe:
        return "Not stated."
    lines = [
        f"- {name}: {value}" for name, value in facts.code.items() if isinstance(value, str | int)
    ]
    if facts.recipe:
        lines.append("- recipe: under `ark.recipe` in config.json")
    return "\n".join(lines)
