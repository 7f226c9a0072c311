"""What a run learned: one table, a JSON and a short report in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ark.head import Head
from ark.ontology import Ontology
from ark.scores import Intervals

RESULTS = "results.json"
INTERVALS = "intervals.json"
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
    """JSON knows no NaN and no infinity: what could not be measured is null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def table(
    columns: Mapping[str, Results],
    heads: Mapping[str, Head],
    every: bool = False,
    intervals: Mapping[str, Intervals] | None = None,
) -> str:
    """A row a task and metric; a column for each of `columns` that is not empty.

    Args:
        columns: results by column title.
        every: also the metrics of single classes (those with a `/` in their name).
        intervals: of the columns that have some; printed behind the value.
    """
    shown = {title: results for title, results in columns.items() if results}
    rows = []
    for task, head in heads.items():
        names = next((r[task] for r in reversed(shown.values()) if task in r), {})
        ordered = sorted(names, key=lambda name: (name != head.main_metric, name))
        for name in ordered:
            if every or "/" not in name:
                ranges = {who: (intervals or {}).get(who, {}).get(task, {}) for who in shown}
                cells = [
                    _cell(results.get(task, {}).get(name), ranges[who].get(name))
                    for who, results in shown.items()
                ]
                rows.append([task, name, *cells])
    # numbers are aligned already; tabulate would take a cell without an interval for a number
    return tabulate(rows, ["task", "metric", *shown], tablefmt="github", disable_numparse=True)


def concepts(columns: Mapping[str, Results], heads: Mapping[str, Head], ontology: Ontology) -> str:
    """A row for each class of a concept that several tasks have, under that concept; "" if none."""
    rows: dict[str, list[list[str]]] = {}
    shown = {title: results for title, results in columns.items() if results}
    for key, head in heads.items():
        for name in head.task.classes:
            metric = _of_class(head, name, [r.get(key, {}) for r in shown.values()])
            if metric is not None:
                concept = ontology.concept(key, name)
                cells = [_cell(r.get(key, {}).get(metric), None) for r in shown.values()]
                rows.setdefault(concept, []).append([concept, key, metric, *cells])
    several = [row for concept in sorted(rows) if len(rows[concept]) > 1 for row in rows[concept]]
    titles = ["concept", "task", "metric", *shown]
    return tabulate(several, titles, tablefmt="github", disable_numparse=True) if several else ""


def _of_class(head: Head, name: str, results: Sequence[Mapping[str, float]]) -> str | None:
    """The main metric of one class, or else the first that there is."""
    found = [metric for metric in results[-1] if metric.partition("/")[2] == name]
    main = f"{head.main_metric}/{name}"
    return main if main in found else next(iter(found), None)


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    """`0.912 (0.884 to 0.937)`"""
    if value is None:
        return ""
    if interval is None or math.isnan(interval[0]):
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def write_report(
    folder: Path,
    title: str,
    columns: Mapping[str, Results],
    facts: Sequence[str],
    heads: Mapping[str, Head],
    intervals: Mapping[str, Intervals] | None = None,
    ontology: Ontology | None = None,
) -> str:
    """Writes results.json, intervals.json and report.md; returns the short table."""
    write_json(folder / RESULTS, columns)
    if intervals:
        write_json(folder / INTERVALS, intervals)
    short = table(columns, heads, intervals=intervals)
    by_concept = concepts(columns, heads, ontology) if ontology else ""
    pictures = sorted((folder / "pictures").rglob("*.png"))
    lines = [
        f"# {title}",
        "",
        *[f"- {fact}" for fact in facts],
        "",
        "Test split. Higher is better, but of errors (mae, rmse, ece, hd95). In brackets: 95 % "
        "intervals, bootstrap over patients.",
        "",
        short,
        "",
        "## Every metric",
        "",
        table(columns, heads, every=True, intervals=intervals),
        "",
        *(["## By concept", "", by_concept, ""] if by_concept else []),
        *[f"![{p.stem}]({p.relative_to(folder).as_posix()})" for p in pictures],
    ]
    (folder / REPORT).write_text("\n".join(lines) + "\n")
    return short
