"""`ark slurm submit`: a run, several seeds of it or a grid of variants, as a SLURM job."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import yaml

from ark.errors import ConfigError
from ark.slurm.job import Job, render
from ark.slurm.work import Work, grid_of_runs, one_recipe

_SCRIPT = "job.sh"
_PASSED_ON = ("partition", "account", "constraint", "mem")  # as they are, to sbatch


def slurm(args: list[str]) -> None:
    """Runs `ark slurm ARGS`."""
    known, options = _parser().parse_known_args(args)
    others = tuple((key, getattr(known, key)) for key in _PASSED_ON)
    job = Job(
        known.nodes, known.time, known.gpus_per_node, known.cpu_ranks, known.cpus_per_task,
        known.warn, known.array, others,
    )  # fmt: skip
    job.check()
    work = _work(known, options, job)
    if work.name in ("bash", "interactive"):
        raise ConfigError(f"run.name {work.name!r}: Lightning takes such a job for no job")
    job = job if work.array is None else replace(job, array=work.array)
    script = render(job, work.name, work.folder.resolve(), work.options)
    if known.dry_run:
        print(script, end="")
        return
    said = submit(script, work.folder)
    for path, text in work.marks.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(said)


def _work(known: argparse.Namespace, options: list[str], job: Job) -> Work:
    if known.ablate is not None:
        if options or known.config or known.array:
            raise ConfigError(
                "slurm submit: --ablate takes recipe, options and array from the grid; leave out "
                f"{[*options, *(known.config or []), *filter(None, [known.array])]}"
            )
        only, seeds = (yaml.safe_load(text) if text else None for text in (known.only, known.seeds))
        return grid_of_runs(known.ablate, only, seeds, job)
    if known.only or known.seeds:
        raise ConfigError("slurm submit: --only and --seeds choose runs of a grid: add --ablate")
    if known.config:
        return one_recipe([*(f"--config={path}" for path in known.config), *options], job)
    raise ConfigError("slurm submit: expected --config RECIPE.yaml, or --ablate GRID.yaml")


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
    path = folder / _SCRIPT
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
    for name in _PASSED_ON:
        parser.add_argument(f"--{name}", help="as of sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    return parser
