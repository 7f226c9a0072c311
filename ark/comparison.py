"""Variants of a run side by side: means over seeds, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from tabulate import tabulate

from ark.scores import WHO

Cell = tuple[str, str, str]  # who, task, metric
Found = dict[Cell, dict[str, dict[int, float]]]  # -> variant -> seed -> value


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % t-interval of the mean: m -+ t_{.975, n-1} s / sqrt(n).

    NaN: all three without a value, the interval with only one.
    """
    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired(mine: Mapping[int, float], first: Mapping[int, float]) -> list[float]:
    """The differences mine - first of the seeds that both have."""
    return [mine[seed] - first[seed] for seed in mine if seed in first]


def rows(found: Found, variants: Sequence[str]) -> list[dict[str, Any]]:
    """A row a cell and variant: mean and interval, and those of the difference to the first; and
    of how many seeds both are."""
    made = []
    for (who, task, metric), cell in found.items():
        for variant in variants:
            mine = cell.get(variant, {})
            names = ("mean", "low", "high", "difference", "difference_low", "difference_high")
            pairs = paired(mine, cell.get(variants[0], {}))
            numbers = (*interval(list(mine.values())), *interval(pairs))
            row = {"who": who, "task": task, "metric": metric, "variant": variant, "n": len(mine)}
            row |= dict(zip(names, numbers, strict=True))
            made.append(row | {"difference_n": len(pairs)})
    return made


def describe(
    made: Sequence[Mapping[str, Any]],
    name: str,
    recipe: str,
    seeds: Sequence[int],
    variants: Sequence[str],
) -> str:
    """Markdown: for student and teacher the means, and the differences to the first variant.

    Args:
        seeds: those of which there are results; a number that is of fewer says so.
    """
    lines = [
        f"# Ablation {name}",
        "",
        f"{recipe}, test split, seeds {list(seeds)}: mean over the seeds and in brackets the "
        "95 % t-interval of it. Differences are paired by seed. What is of fewer seeds says n.",
    ]
    for who in WHO:
        mine = [row for row in made if row["who"] == who]
        for title, number in (("", "mean"), (f", less {variants[0]}", "difference")):
            shown = variants if number == "mean" else variants[1:]
            table = {(row["task"], row["metric"]): [row["task"], row["metric"]] for row in mine}
            for row in mine:
                if row["variant"] in shown:
                    table[row["task"], row["metric"]].append(_cell(row, number, len(seeds)))
            text = tabulate(
                list(table.values()), ["task", "metric", *shown], "github", disable_numparse=True
            )
            lines += ["", f"## {who.capitalize()}{title}", "", text] if shown else []
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], number: str, seeds: int) -> str:
    """`0.912 (0.884 to 0.937)`; of a difference with its sign; of fewer than all seeds with n."""
    sign, prefix = ("+", "difference_") if number == "difference" else ("", "")
    if math.isnan(row[number]):
        return ""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    notes = [] if math.isnan(low) else [f"{low:{sign}.3f} to {high:{sign}.3f}"]
    notes += [f"n={count}"] if (count := row[f"{prefix}n"]) != seeds else []
    return f"{row[number]:{sign}.3f}" + (f" ({', '.join(notes)})" if notes else "")
