"""The comparison every joint run owes: each task trained alone, from the same start, with the
same number of steps."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from ark import planning, report
from ark.cycle import Cycle
from ark.network import Network
from ark.planning import CycleConfig
from ark.run import RunConfig
from ark.types import ConfigError

log = logging.getLogger("ark")
PLAN, MADE_WITH = "cycle.yaml", "recipe.sha256"


def train_each(
    run: RunConfig, network: Network, cycle: Cycle, recipe: str, max_steps: int = -1
) -> None:
    """Runs this very command once a task with `--data.only` and what the task does in `cycle`,
    then joins the tables.

    Each task gets a process and a folder of its own, `<run>/alone/<dataset>/<task>`, which holds
    its plan. One that was finished with this very recipe and plan is not run again. Where `<run>`
    holds the joint run's results they stand beside.

    Args:
        cycle: the joint run's plan.
        recipe: the whole configuration, to know it again.
        max_steps: where the joint run stops before its plan's end; -1: nowhere.

    Raises:
        ConfigError: a task's run failed, a head needs another task's (`guide`), or the joint run
            stops before a task trains.
    """
    for key, head in network.heads_by_key().items():
        if head.guide is not None:
            raise ConfigError(
                f"run.alone: the head of {key} looks where its guide {head.guide!r} says, and "
                "alone it has none; choose a head without guide for this comparison (data.heads)"
            )
    columns: dict[str, report.Results] = {"alone student": {}, "alone teacher": {}}
    folder = run.folder / "alone"
    plans = {key: own_plan(cycle, key, network) for key in network.tasks}
    stops = {key: _stop(cycle, key, max_steps) for key in network.tasks}
    for key in network.tasks:
        plan, made_with = folder / key / PLAN, folder / key / MADE_WITH
        text = yaml.safe_dump({"cycle": asdict(plans[key])}, sort_keys=False)
        digest = hashlib.sha256(f"{recipe}\n{text}".encode()).hexdigest()
        if not made_with.is_file() or made_with.read_text() != digest:
            made_with.unlink(missing_ok=True)  # until this one is finished too
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.write_text(text)
            _train(f"{run.name}/alone/{key}", key, plan, stops[key])
            made_with.write_text(digest)
        found = report.read_json(folder / key / report.RESULTS)
        for who in ("student", "teacher"):
            columns[f"alone {who}"].update(found[who])
    together = report.read_json(run.folder / report.RESULTS) or {}
    columns |= {f"joint {who}": together[who] for who in ("student", "teacher") if who in together}
    heads = network.heads_by_key()
    facts = ["each task alone, from the same start and with the same steps as in the joint run"]
    log.info("\n%s\n", report.write_report(folder, f"{run.name}: alone", columns, facts, heads))


def own_plan(cycle: Cycle, key: str, network: Network) -> CycleConfig:
    """`planning.alone`, less the locks of what only other tasks use: alone it is not there."""
    head = network.head(key)
    used = (network.backbone, network.projector, *head.shared_parts(), head)
    mine = {id(p) for module in used for p in module.parameters()}

    def own(names: Sequence[str]) -> list[str]:
        parts = {name: network.part(name, key) for name in names}
        return [n for n in names if any(id(p) in mine for p in parts[n].parameters())]

    plan = planning.alone(cycle, key)
    phases = [replace(p, lock=own(p.lock), train=own(p.train)) for p in plan.phases]
    mix = plan.mix and replace(plan.mix, lock=own(plan.mix.lock), train=own(plan.mix.train))
    return replace(plan, phases=phases, mix=mix)


def _stop(cycle: Cycle, key: str, max_steps: int) -> int:
    """`trainer.max_steps` of the task alone."""
    if not 0 <= max_steps < cycle.total_steps:
        return max_steps
    steps = cycle.steps_of(key, max_steps)
    if not steps:
        raise ConfigError(
            f"run.alone: the joint run stops after trainer.max_steps={max_steps}, before {key} "
            "trains; raise it, or leave the task out (data.only)"
        )
    return steps


def _train(name: str, key: str, plan: Path, max_steps: int) -> None:
    own = [
        f"--config={plan}",  # of several files the last one's lists count
        f"--trainer.max_steps={max_steps}",
        "--run.alone=false",
        "--run.overwrite=true",
        "--run.baseline=false",
        f"--run.name={name}",
        f"--data.only=[{key}]",
    ]
    log.info("alone: %s", key)
    done = subprocess.run([sys.executable, "-m", "ark", *sys.argv[1:], *own], check=False)
    if done.returncode:
        raise ConfigError(f"alone: the run of {key} failed with exit code {done.returncode}")
