"""What a job runs: a recipe, several seeds of it, or the runs of a grid."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ark.errors import ConfigError
from ark.slurm.job import Job

_TASK = "$SLURM_ARRAY_TASK_ID"
_OURS = ("ckpt_path", "trainer.num_nodes", "trainer.devices", "trainer.accelerator")


@dataclass(frozen=True)
class Work:
    """What a job runs.

    Args:
        name: of the job.
        folder: for its script and what it prints.
        options: lines of bash that set `options`.
        array: its tasks, where not the user says which.
        marks: files to write once it is submitted, with their text.
    """

    name: str
    folder: Path
    options: str
    array: str | None = None
    marks: Mapping[Path, str] = field(default_factory=dict)


def one_recipe(options: Sequence[str], job: Job) -> Work:
    """`ark fit OPTIONS`, once or with each seed of an array.

    Raises:
        ConfigError: an option that the job sets itself, or that cannot go on after a requeue.
    """
    ours = (*_OURS, "seed_everything") if job.array is not None else _OURS
    for option in options:
        if (key := option.removeprefix("--").split("=")[0]) in ours:
            raise ConfigError(
                f"slurm submit: option --{key} is set by the job itself; leave it out"
            )
    config = resolved(options)
    check_batch(config, job)
    run = config["run"]
    for key in ("overwrite", "alone"):
        if run[key]:
            raise ConfigError(
                f"slurm submit: run.{key}=true; expected false: a requeued job goes on with its "
                "run. Delete an old run's folder, or choose another run.name"
                if key == "overwrite"
                else "slurm submit: run.alone=true; submit a job a task with --data.only=[TASK]"
            )
    name, mine = str(run["name"]), [*options, *job.trainer_options()]
    lines = bash_array(mine)
    if job.array is not None:
        lines += (
            f'\noptions+=(--seed_everything="{_TASK}" --run.name={shlex.quote(name)}/seed"{_TASK}")'
        )
    return Work(name, Path(run["root"]) / name, lines)


def check_batch(config: Mapping[str, Any], job: Job, whose: str = "") -> None:
    """
    Args:
        whose: in front of the setting, in the message.

    Raises:
        ConfigError: the ranks of the job cannot share a step's samples.
    """
    samples, ranks = int(config["data"]["batch_size"]), job.nodes * job.ranks
    accumulated = int(config["trainer"]["accumulate_grad_batches"] or 1)
    if samples % (ranks * accumulated):
        raise ConfigError(
            f"slurm submit: {whose}data.batch_size={samples}: a step's samples do not split over "
            f"{ranks} ranks x {accumulated} accumulated batches; choose a multiple"
        )


def resolved(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration: what is wrong with it is said now, not when the job starts.

    Raises:
        ConfigError: `ark fit` does not take the options.
    """
    command = [sys.executable, "-m", "ark", "fit", *options, "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"slurm submit: `ark fit` does not take these options:\n{done.stderr}")
    return yaml.safe_load(done.stdout)


def grid_of_runs(path: str, only: list[str] | None, seeds: list[int] | None, job: Job) -> Work:
    """Every run of a grid that is not finished, each a task of the array. `ark ablate` takes their
    results for its own, and makes the table.

    Raises:
        ConfigError: the grid is wrong, or has nothing left to run.
    """
    from ark.ablation import MADE_WITH, plan
    from ark.grid import Grid

    grid = Grid.load(Path(path))
    runs = plan(grid, Path(path), seeds or grid.seeds)
    if unknown := sorted(set(only or []) - {run.variant for run in runs}):
        raise ConfigError(f"slurm submit: no variant {unknown[0]!r} in {path}")
    waiting = [r for r in runs if r.variant in (only or [r.variant]) and not r.results.is_file()]
    if not waiting:
        raise ConfigError(f"slurm submit: all runs of {path} are finished; `ark ablate {path}`")
    cases = []
    for number, run in enumerate(waiting):
        if run.plan.alone:
            raise ConfigError(f"slurm submit: variant {run.variant} has run.alone; leave it out")
        check_batch(yaml.safe_load(run.plan.recipe), job, f"variant {run.variant}: ")
        run.check_folder()
        mine = [*run.options, f"--seed_everything={run.seed}", *job.trainer_options()]
        cases.append(f"  {number})  # {run.label}\n{bash_array(mine)}\n  ;;")
    lines = "\n".join([f'case "{_TASK}" in', *cases, "esac"])
    marks = {run.folder / MADE_WITH: run.digest for run in waiting}
    folder = Path(grid.root) / grid.name
    return Work(grid.name, folder, lines, f"0-{len(waiting) - 1}", marks)


def bash_array(options: Sequence[str]) -> str:
    return "\n".join(["options=(", *(f"  {shlex.quote(option)}" for option in options), ")"])
