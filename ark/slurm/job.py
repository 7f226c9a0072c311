"""A SLURM job: what is asked of the cluster, and its script."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ark.errors import ConfigError

_TEMPLATE = "job.sh.in"
# formats of sbatch's --time
_TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?)|(?P<c>\d+(:\d+){0,2})"
)
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")


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
    template = resources.files(__package__).joinpath(_TEMPLATE).read_text()
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], template)
