"""`ark ablate GRID.yaml`: one recipe in several variants, with the same seeds and as many steps."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
from pytorch_lightning.cli import LightningArgumentParser

from ark import report
from ark.cli import ArkCLI
from ark.comparison import Found, describe, rows
from ark.forgetting import MEASURES, NUMBERS
from ark.grid import Grid, arguments
from ark.run import LAST
from ark.scores import WHO
from ark.types import ConfigError

log = logging.getLogger("ark")
TABLE, ROWS, MADE_WITH, LOG = "ablation.md", "ablation.csv", "ablation.sha256", "log.txt"
_MEAN = "mean over tasks"


# -- what a variant is, before it runs ------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What `ark fit` would do with the options of a variant."""

    steps: int  # optimiser steps
    main: dict[str, str]  # task key -> main metric
    alone: bool  # each task in a run of its own
    recipe: str  # the whole configuration

    @classmethod
    def of(cls, variant: str, options: Sequence[str]) -> Plan:
        """Raises:
        ConfigError: names the variant and what is wrong with its options.
        """
        try:
            cli = _Planned(options)
        except ConfigError as error:
            raise ConfigError(f"variant {variant}: {error}") from error
        except SystemExit as error:  # jsonargparse has said why
            raise ConfigError(f"variant {variant}: `ark fit` does not take its options") from error
        cut, total = cli.config.fit.trainer.max_steps, cli.model.cycle.total_steps
        main = {key: head.main_metric for key, head in cli.model.network.heads_by_key().items()}
        return cls(total if cut < 0 else min(cut, total), main, cli.run.alone, cli.recipe)


class _Planned(ArkCLI):
    """`ark fit` up to where it would touch the run's folder."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = ["fit", *options]
        super().__init__()

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**{"prog": "ark", **kwargs})  # its errors name `ark fit`

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = parser.parse_args(self._options)

    def before_instantiate_classes(self) -> None:
        self.recipe = f"{self._recipe()}alone: {self.config.fit.run.alone}\n"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        return


def check_equal_steps(plans: Mapping[str, Plan]) -> None:
    """Raises:
    ConfigError: a variant has another number of steps than the first, or other tasks.
    """
    (first, expected), *others = plans.items()
    for name, plan in others:
        if plan.steps != expected.steps:
            raise ConfigError(
                f"variant {name} takes {plan.steps} optimiser steps, {first} takes "
                f"{expected.steps}; a fair comparison gives all as many: write `steps` in place "
                "of `passes`, or change `cycle.cycles`"
            )
        if plan.main != expected.main:
            raise ConfigError(
                f"variant {name} scores {plan.main}, {first} scores {expected.main}; "
                "expected the same tasks and metrics"
            )


# -- running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path
    options: tuple[str, ...]
    plan: Plan

    @property
    def results(self) -> Path:
        return self.folder / ("alone" if self.plan.alone else "") / report.RESULTS

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.plan.recipe}\nseed {self.seed}".encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"{self.variant} seed {self.seed}"

    def command(self) -> list[str]:
        """What starts it, or goes on with it where it left a checkpoint."""
        start = [sys.executable, "-m", "ark", "fit", *self.options]
        start.append(f"--seed_everything={self.seed}")
        if self.plan.alone:  # `run.alone` itself skips the tasks that are finished
            return start
        last = self.folder / "checkpoints" / LAST
        return [*start, "--ckpt_path=last" if last.is_file() else "--run.overwrite=true"]

    @property
    def made_with(self) -> str | None:
        """The digest of the run that the folder holds."""
        path = self.folder / MADE_WITH
        return path.read_text() if path.is_file() else None

    def check_folder(self) -> None:
        """Raises:
        ConfigError: the folder holds what another grid or recipe made.
        """
        known = self.made_with
        used = self.results.is_file() or any(self.folder.glob("checkpoints/*.ckpt"))
        if known != self.digest and (used or known is not None):
            raise ConfigError(
                f"{self.folder} holds a run of another recipe than {self.label} has now; delete "
                "it, or give the grid another `name`"
            )

    def execute(self) -> bool:
        """Runs it to its end and says whether it came there. Its output goes to log.txt, which
        stays locked as long as it runs, even if `ark ablate` was killed before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("ab") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.error("%s: still runs in another process; wait for it, or end it", self.label)
                return False
            (self.folder / MADE_WITH).write_text(self.digest)
            log.info("%s: %s", self.label, self.folder)
            done = subprocess.run(self.command(), stdout=output, stderr=output, check=False)
        if done.returncode == 0 and self.results.is_file():
            return True
        log.error("%s: failed with exit code %d; %s ends:", self.label, done.returncode, LOG)
        log.error("%s", "\n".join(_last_lines(self.folder / LOG)))
        return False


def _last_lines(path: Path, count: int = 12) -> list[str]:
    text = path.read_text(errors="replace").replace("\r", "\n")
    return ["  " + line for line in text.splitlines() if line.strip()][-count:]


def execute(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Runs those that are not finished, `jobs` at a time; returns those that failed."""
    for run in runs:
        run.check_folder()
    waiting = [run for run in runs if not run.results.is_file()]
    log.info("ablate: %d runs, %d finished before", len(runs), len(runs) - len(waiting))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = list(pool.map(Run.execute, waiting))
        except KeyboardInterrupt:  # the runs get it too; no other begins
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [run for run, fine in zip(waiting, done, strict=True) if not fine]


# -- the results ----------------------------------------------------------------------------------


def collect(runs: Sequence[Run]) -> Found:
    """The main metric of every task, its mean over the tasks (of runs in which all of them could
    be measured), and the means of what `ark.forgetting` measured.

    What another recipe left in a run's folder is left out, and said; so is, without a word, a run
    that has no results yet.
    """
    found: Found = {}
    for run in runs:
        results = report.read_json(run.results)
        if results and run.made_with != run.digest:
            log.warning(
                "ablate: the table lacks %s: %s is of another recipe", run.label, run.folder
            )
            continue
        lost = None if run.plan.alone else report.read_json(run.folder / NUMBERS)
        for who in WHO if results else ():
            column = results[f"alone {who}" if run.plan.alone else who]
            scores = {t: column[t].get(metric) for t, metric in run.plan.main.items()}
            rows = {(t, run.plan.main[t]): value for t, value in scores.items()}
            if None not in scores.values():
                rows[_MEAN, "main metric"] = float(np.mean(list(scores.values())))
            rows |= {(_MEAN, m): lost[who][m]["mean"] for m in MEASURES if lost}
            for (task, metric), value in rows.items():
                if value is not None:  # else it could not be measured
                    cell = found.setdefault((who, task, metric), {})
                    cell.setdefault(run.variant, {})[run.seed] = value
    return found


# -- the command ----------------------------------------------------------------------------------


def ablate(args: list[str]) -> None:
    """Runs `ark ablate ARGS`; exits with 1 where a run failed."""
    parser = jsonargparse.ArgumentParser(prog="ark ablate", description=__doc__)
    parser.add_argument("grid", help="YAML: see ark.grid.Grid")
    parser.add_argument("--seeds", type=list[int] | None, help="in place of the grid's")
    parser.add_argument("--only", type=list[str] | None, help="variants to run; default: all")
    parser.add_argument("--against", help="compare to this variant; default: the first")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args(args)
    path = Path(options.grid)
    grid = Grid.load(path)
    seeds = grid.seeds if options.seeds is None else options.seeds
    variants = list(grid.combined())
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"ablate: seeds={seeds}; expected at least one, each once")
    named = {*(options.only or []), *filter(None, [options.against])}
    if unknown := sorted(named - set(variants)):
        raise ConfigError(f"ablate: no variant {unknown[0]!r}; the grid has {variants}")
    if options.jobs < 1:
        raise ConfigError(f"ablate: jobs={options.jobs}; expected at least 1")
    every = list(dict.fromkeys([*grid.seeds, *seeds]))  # the table keeps what is finished
    runs = plan(grid, path, every)
    chosen = [r for r in runs if r.seed in seeds and r.variant in (options.only or variants)]
    if options.dry_run:
        for run in chosen:
            done = "# finished: " if run.results.is_file() else ""
            print(f"{done}{shlex.join(run.command())}")
        return
    failed = execute(chosen, options.jobs)
    found = collect(runs)
    ran = {seed for cell in found.values() for values in cell.values() for seed in values}
    variants.sort(key=lambda variant: variant != options.against)  # stable: all others stay
    made = rows(found, variants)
    shown = [seed for seed in every if seed in ran]
    folder = Path(grid.root) / grid.name
    write(folder, made, describe(made, grid.name, grid.recipe, shown, variants))
    if failed:
        log.error("ablate: %d runs failed: %s", len(failed), ", ".join(r.label for r in failed))
        sys.exit(1)


def plan(grid: Grid, path: Path, seeds: Sequence[int]) -> list[Run]:
    """Every variant with every seed, once all variants are known to be right and equally long."""
    recipe = os.path.normpath(path.parent / grid.recipe)
    options = {
        name: ["--config", recipe, *arguments({**grid.fixed, **mine}), f"--run.root={grid.root}"]
        for name, mine in grid.combined().items()
    }
    plans = {name: Plan.of(name, mine) for name, mine in options.items()}
    check_equal_steps(plans)
    log.info("ablate: %d optimiser steps each", next(iter(plans.values())).steps)
    return [
        Run(variant, seed, Path(grid.root) / name, (*mine, f"--run.name={name}"), plans[variant])
        for variant, mine in options.items()
        for seed in seeds
        for name in [f"{grid.name}/{variant}/seed{seed}"]
    ]


def write(folder: Path, made: Sequence[Mapping[str, Any]], text: str) -> None:
    if not made:
        return
    (folder / TABLE).write_text(text)
    with (folder / ROWS).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    log.info("\n%s\n%s and %s are in %s", text, TABLE, ROWS, folder)
