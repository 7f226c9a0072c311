"""What a run learned: one table, a JSON and a short report in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ark.head import Head

RESULTS = "results.json"
START = "start.json"
REPORT = "report.md"
Results = dict[str, dict[str, float]]  # task key -> metric -> value; NaN: not measurable


def collect(metrics: Mapping[str, Any], prefix: str, tasks: Sequence[str]) -> Results:
    """Picks `<prefix>/<task>/<metric>` out of logged metrics."""
    return {
        task: {
            name.removeprefix(f"{prefix}/{task}/"): float(value)
            for name, value in metrics.items()
            if name.startswith(f"{prefix}/{task}/")
        }
        for task in tasks
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what could not be measured is null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def table(columns: Mapping[str, Results], heads: Mapping[str, Head], every: bool = False) -> str:
    """A row a task and metric; a column for each of `columns` that is not empty.

    Args:
        columns: results by column title.
        every: also the metrics of single classes (those with a `/` in their name).
    """
    shown = {title: results for title, results in columns.items() if results}
    rows = []
    for task, head in heads.items():
        names = next((r[task] for r in reversed(shown.values()) if task in r), {})
        ordered = sorted(names, key=lambda name: (name != head.main_metric, name))
        for name in ordered:
            if every or "/" not in name:
                values = [results.get(task, {}).get(name) for results in shown.values()]
                rows.append([task, name, *values])
    return tabulate(rows, ["task", "metric", *shown], tablefmt="github", floatfmt=".3f")


def write_report(
    folder: Path,
    title: str,
    columns: Mapping[str, Results],
    facts: Sequence[str],
    heads: Mapping[str, Head],
) -> str:
    """Writes results.json and report.md; returns the short table."""
    write_json(folder / RESULTS, columns)
    short = table(columns, heads)
    pictures = sorted((folder / "pictures").rglob("*.png"))
    lines = [
        f"# {title}",
        "",
        *[f"- {fact}" for fact in facts],
        "",
        "Test split. Higher is better.",
        "",
        short,
        "",
        "## Every metric",
        "",
        table(columns, heads, every=True),
        "",
        *[f"![{p.stem}]({p.relative_to(folder).as_posix()})" for p in pictures],
    ]
    (folder / REPORT).write_text("\n".join(lines) + "\n")
    return short
