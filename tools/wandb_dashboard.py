"""Lays out a W&B workspace for the runs of a recipe: `python tools/wandb_dashboard.py RUN`.

RUN is the folder of a run of that recipe, which may still be going on: its tasks and metrics make
the panels. Without --entity it prints the definition as JSON; with it and a key it saves the
workspace and prints its address. Needs `pip install wandb-workspaces`.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

from ark.tracking.wandb_logger import AXIS

WHO = {"val": "student", "val_teacher": "teacher"}
COMMON = {
    "teacher": ("teacher/momentum", "teacher/consistency_weight"),
    "plan": ("plan/cycle", "plan/phase"),
    "samples a second": ("speed/samples_per_s",),
    "steps a second": ("speed/steps_per_s",),
    "share of the time that waits for data": ("speed/data_wait",),
    "memory in GB": ("memory/rss_gb", "memory/cuda_peak_gb", "memory/cuda_reserved_gb"),
}


def logged(run: Path) -> set[str]:
    """The names of all metrics of a run, over its sessions."""
    names: set[str] = set()
    for path in run.glob("logs/version_*/metrics.csv"):
        with path.open(newline="") as file:
            names |= set(next(csv.reader(file)))
    if not names:
        raise SystemExit(f"{run}: no logs/version_*/metrics.csv with a metric; is it a run?")
    return names


def tasks_of(names: Iterable[str]) -> list[str]:
    """`<dataset>/<task>` of everything that was trained, in alphabetical order."""
    found = (re.fullmatch("train/([^/]+/[^/]+)/loss", name) for name in names)
    return sorted(match[1] for match in found if match)


def line(title: str, metrics: Sequence[str]) -> panels.LinePlot:
    return panels.LinePlot(title=title, x=AXIS, y=list(metrics))


def task_section(task: str, names: set[str]) -> workspaces.Section:
    """Losses; each metric of student and teacher; images."""
    losses = sorted(name for name in names if name.startswith(f"train/{task}/"))
    scores: dict[str, list[str]] = {}
    for split in WHO:
        for name in sorted(names):
            metric = name.removeprefix(f"{split}/{task}/")
            if metric != name and "/" not in metric:  # those of single classes are in the table
                scores.setdefault(metric, []).append(name)
    found = [line("training losses", losses)]
    found += [line(metric, both) for metric, both in sorted(scores.items())]
    found.append(panels.MediaBrowser(title="validation", media_keys=[f"panels/{task}"]))
    found.append(panels.MediaBrowser(title="test, at the end", media_keys=[f"pictures/{task}"]))
    return workspaces.Section(name=task, panels=found, is_open=False)


def overview(names: set[str], tasks: Sequence[str]) -> workspaces.Section:
    """What to look at first."""
    found = [
        line("mean validation score", [f"{split}/score" for split in WHO]),
        line("training losses", [f"train/{task}/loss" for task in tasks]),
        panels.WeavePanelSummaryTable(table_name="classes/val"),
    ]
    return workspaces.Section(name="overview", panels=found, is_open=True)


def running(names: set[str]) -> workspaces.Section:
    """The plan and the machine."""
    known = {title: [name for name in some if name in names] for title, some in COMMON.items()}
    known["learning rates"] = sorted(name for name in names if name.startswith("lr-"))
    found = [line(title, some) for title, some in known.items() if some]
    return workspaces.Section(name="plan and machine", panels=found, is_open=False)


def gradients(names: set[str]) -> list[workspaces.Section]:
    """Only of runs with `ark.telemetry.GradientTelemetry`."""
    found = {
        what: sorted(n for n in names if n.startswith("gradient/") and n.endswith(f"/{what}"))
        for what in ("norm", "cosine")
    }
    drawn = [line(f"{what} of each task's gradient", some) for what, some in found.items() if some]
    return [workspaces.Section(name="gradients", panels=drawn, is_open=False)] if drawn else []


def forgetting(names: set[str]) -> list[workspaces.Section]:
    """Only of runs that measure it."""
    mine = sorted(name for name in names if name.startswith("forgetting/"))
    measures = dict.fromkeys(name.split("/")[2] for name in mine)
    found = [line(m, [name for name in mine if name.endswith(f"/{m}")]) for m in measures]
    found.append(panels.MediaBrowser(title="scores", media_keys=["forgetting/heat_map"]))
    found.append(panels.WeavePanelSummaryTable(table_name="forgetting/matrix"))
    return [workspaces.Section(name="forgetting", panels=found, is_open=False)] if mine else []


def dashboard(names: set[str], entity: str, project: str) -> workspaces.Workspace:
    """The definition; nothing is sent."""
    tasks = tasks_of(names)
    sections = [overview(names, tasks), *(task_section(task, names) for task in tasks)]
    sections += [*forgetting(names), *gradients(names), running(names)]
    settings = workspaces.WorkspaceSettings(x_axis=AXIS)
    return workspaces.Workspace(
        entity=entity, project=project, name="Ark", sections=sections, settings=settings
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--entity", help="save it there; without it, print it")
    parser.add_argument("--project", default="ark")
    options = parser.parse_args()
    made = dashboard(logged(options.run), options.entity or "ENTITY", options.project)
    if options.entity:
        made.save()
        print(made.url)
    else:
        print(made._to_model().model_dump_json(by_alias=True, exclude_none=True))


if __name__ == "__main__":
    main()
