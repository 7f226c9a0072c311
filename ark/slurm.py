"""`ark slurm submit`: a run, several seeds of it or a grid of variants, as a SLURM job."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ark.errors import ConfigError

TEMPLATE, SCRIPT = "slurm_job.sh.in", "job.sh"
_TASK = "$SLURM_ARRAY_TASK_ID"
# formats of sbatch's --time
_TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?)|(?P<c>\d+(:\d+){0,2})"
)
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_OURS = ("ckpt_path", "trainer.num_nodes", "trainer.devices", "trainer.accelerator")


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM.

    Args:
        nodes: how many.
        time: limit of one start of the job, in a format of sbatch's --time.
        gpus_per_node: as many ranks run on each node, one a GPU.
        cpu_ranks: in place of GPUs: ranks on each node.
        warn: seconds before the limit at which the run is told to stop. SLURM looks once a minute,
            and may be up to a minute early.
        array: of seeds, such as "0-4" or "0,3,7%2", in sbatch's format.
        others: further options of sbatch, by name; those that are None are left out.
    """

    nodes: int
    time: str
    gpus_per_node: int | None = None
    cpu_ranks: int | None = None
    cpus_per_task: int | None = None
    warn: int = 120
    array: str | None = None
    others: tuple[tuple[str, str | None], ...] = ()

    @property
    def ranks(self) -> int:
        """On each node."""
        return self.gpus_per_node or self.cpu_ranks or 0

    def check(self) -> None:
        """Raises:
        ConfigError: names the option, its value and what was expected.
        """
        if (self.gpus_per_node is None) == (self.cpu_ranks is None):
            raise ConfigError(
                f"slurm submit: --gpus-per-node {self.gpus_per_node}, --cpu-ranks "
                f"{self.cpu_ranks}; expected one of them: ranks on each node, one a GPU or on CPUs"
            )
        for name in ("nodes", "gpus_per_node", "cpu_ranks", "cpus_per_task", "warn"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"slurm submit: --{option} {value}; expected at least 1")
        limit = seconds(self.time)
        if limit <= self.warn:
            raise ConfigError(
                f"slurm submit: --time {self.time} is {limit} s, --warn {self.warn} s before its "
                "end; give the job more time than the warning takes"
            )
        if self.array is not None and not _ARRAY.fullmatch(self.array):
            raise ConfigError(
                f"slurm submit: --array {self.array}; expected seeds such as 0-4 or 0,3,7, with %N "
                "at the end for at most N at a time"
            )

    def directives(self, name: str, folder: Path) -> str:
        """The #SBATCH lines.

        Args:
            folder: for what the job prints.
        """
        log = f"{folder}/slurm-".replace("%", "%%") + ("%A_%a.out" if self.array else "%j.out")
        options = {
            "job-name": name.replace("/", "-"),
            "nodes": self.nodes,
            "ntasks-per-node": self.ranks,
            "cpus-per-task": self.cpus_per_task,
            # every rank sees all GPUs of its node and takes the one of its number
            "gpus-per-node": self.gpus_per_node,
            "time": self.time,
            "array": self.array,
            **dict(self.others),
            # to the ranks, not to the script: no "B:"
            "signal": f"USR1@{self.warn}",
            "chdir": Path.cwd(),
            "output": log,
            "open-mode": "append",
        }
        lines = [f"--{k}={shlex.quote(str(v))}" for k, v in options.items() if v is not None]
        return "\n".join(f"#SBATCH {line}" for line in [*lines, "--requeue"])

    def trainer_options(self) -> list[str]:
        accelerator = "gpu" if self.gpus_per_node else "cpu"
        return [
            f"--trainer.num_nodes={self.nodes}",
            f"--trainer.devices={self.ranks}",
            f"--trainer.accelerator={accelerator}",
            "--ckpt_path=auto",  # the first start begins, those after a requeue go on
        ]


def seconds(time: str) -> int:
    """Of sbatch's --time.

    Raises:
        ConfigError: it is in no format of sbatch's.
    """
    found = _TIME.fullmatch(time)
    if found is None:
        raise ConfigError(
            f"slurm submit: --time {time}; expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or "
            "D-HH:MM:SS"
        )
    if found["c"]:
        parts = [int(part) for part in found["c"].split(":")]
        if len(parts) == 1:
            return 60 * parts[0]
        return sum(part * 60**power for power, part in enumerate(reversed(parts)))
    days, hours, minutes, rest = (int(found[name] or 0) for name in ("d", "dh", "dm", "ds"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def render(job: Job, name: str, folder: Path, options: str) -> str:
    """The job's script.

    Args:
        name: of the job.
        folder: for what it prints.
        options: lines of bash that set `options`, those of `ark fit`.
    """
    values = {
        "DIRECTIVES": job.directives(name, folder),
        "OPTIONS": options,
        "BIN": shlex.quote(str(Path(sys.executable).parent)),
        "PYTHON": shlex.quote(sys.executable),
    }
    template = resources.files("ark").joinpath(TEMPLATE).read_text()
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], template)


# -- what a job runs ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a job runs.

    Args:
        name: of the job.
        folder: for its script and what it prints.
        options: lines of bash that set `options`.
        array: its tasks, where not the user says which.
    """

    name: str
    folder: Path
    options: str
    array: str | None = None


def one_recipe(options: Sequence[str], job: Job) -> Work:
    """`ark fit OPTIONS`, once or with each seed of an array.

    Raises:
        ConfigError: an option that the job sets itself, or that cannot go on after a requeue.
    """
    for option in options:
        if (key := option.removeprefix("--").split("=")[0]) in _OURS:
            raise ConfigError(
                f"slurm submit: option --{key} is set by the job itself; leave it out"
            )
    run = resolved(options)["run"]
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
        run.check_folder()
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / MADE_WITH).write_text(run.digest)
        mine = [*run.options, f"--seed_everything={run.seed}", *job.trainer_options()]
        cases.append(f"  {number})  # {run.label}\n{bash_array(mine)}\n  ;;")
    lines = "\n".join([f'case "{_TASK}" in', *cases, "esac"])
    return Work(grid.name, Path(grid.root) / grid.name, lines, f"0-{len(waiting) - 1}")


def bash_array(options: Sequence[str]) -> str:
    return "\n".join(["options=(", *(f"  {shlex.quote(option)}" for option in options), ")"])


# -- the command ----------------------------------------------------------------------------------


def slurm(args: list[str]) -> None:
    """Runs `ark slurm ARGS`."""
    known, options = _parser().parse_known_args(args)
    others = tuple(
        (key, getattr(known, key)) for key in ("partition", "account", "constraint", "mem")
    )
    job = Job(
        known.nodes, known.time, known.gpus_per_node, known.cpu_ranks, known.cpus_per_task,
        known.warn, known.array, others,
    )  # fmt: skip
    job.check()
    if known.ablate is not None:
        if options or known.config or known.array:
            raise ConfigError(
                "slurm submit: --ablate takes recipe, options and array from the grid; leave out "
                f"{[*options, *(known.config or []), *filter(None, [known.array])]}"
            )
        only, seeds = (yaml.safe_load(text) if text else None for text in (known.only, known.seeds))
        work = grid_of_runs(known.ablate, only, seeds, job)
    elif known.config:
        work = one_recipe([*(f"--config={path}" for path in known.config), *options], job)
    else:
        raise ConfigError("slurm submit: expected --config RECIPE.yaml, or --ablate GRID.yaml")
    if work.name in ("bash", "interactive"):
        raise ConfigError(f"run.name {work.name!r}: Lightning takes such a job for no job")
    job = job if work.array is None else Job(**{**vars(job), "array": work.array})
    script = render(job, work.name, work.folder.resolve(), work.options)
    if known.dry_run:
        print(script, end="")
        return
    print(submit(script, work.folder))


def submit(script: str, folder: Path) -> str:
    """Gives the script to sbatch; says which job it became and where it is.

    Raises:
        ConfigError: there is no sbatch here, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "slurm submit: no sbatch here; submit on a login node of the cluster, or see the "
            "script with --dry-run"
        )
    folder.mkdir(parents=True, exist_ok=True)  # SLURM does not make folders
    path = folder / SCRIPT
    path.write_text(script)
    command = ["sbatch", "--parsable", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"slurm submit: sbatch refuses {path}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    return f"job {job}: {path}; it prints to {folder}/slurm-{job}*.out"


def _parser() -> argparse.ArgumentParser:
    """Not jsonargparse: what is not known here is for `ark fit`, and goes to it as it is."""
    parser = argparse.ArgumentParser(
        prog="ark slurm",
        description="Further options are those of `ark fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=["submit"])
    parser.add_argument("--config", action="append", help="recipe; may be given several times")
    parser.add_argument("--ablate", metavar="GRID", help="a grid's runs as a job array instead")
    parser.add_argument("--only", help="with --ablate: variants, such as [a,b]")
    parser.add_argument("--seeds", help="with --ablate: such as [0,1], in place of the grid's")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, help="ranks on each node, one a GPU")
    parser.add_argument("--cpu-ranks", type=int, help="ranks on each node, without GPUs")
    parser.add_argument("--cpus-per-task", type=int, help="cores of a rank and its workers")
    parser.add_argument("--time", required=True, help="limit of one start: HH:MM:SS, D-HH, minutes")
    parser.add_argument("--warn", type=int, default=120, help="seconds before it to stop at")
    parser.add_argument("--array", help="seeds, each a run of its own: 0-4, 0,3,7, 0-9%%2")
    for name in ("partition", "account", "constraint", "mem"):
        parser.add_argument(f"--{name}", help="as of sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    return parser
