"""A SLURM of two nodes on this machine, with real daemons; tests/slurm/conftest.py starts it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "slurm"
WAIT = 300.0  # seconds for anything that ought to take a few


def until(true: Callable[[], object], what: Callable[[], str]) -> None:
    """Fails with `what` when the time is over."""
    end = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"after {WAIT:.0f} s: {what()}")
        time.sleep(0.2)


@dataclass
class Cluster:
    """Args:
    folder: for all that the daemons keep.
    """

    folder: Path

    def script(self, name: str, *args: object) -> None:
        command = ["bash", str(HERE / name), *map(str, args)]
        # the daemons would hold a pipe open
        with (self.folder.parent / "cluster.log").open("a+") as said:
            done = subprocess.run(command, stdout=said, stderr=said, timeout=WAIT, check=False)
            said.seek(0)
            assert done.returncode == 0, said.read()

    @property
    def two_hosts(self) -> bool:
        return (self.folder / "two_hosts").exists()

    def show(self, job: str) -> dict[str, str]:
        """What SLURM says of a job."""
        command = ["scontrol", "show", "job", "-o", job]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(part.split("=", 1) for part in done.stdout.split() if "=" in part)

    def wait(self, job: str, state: str, log: Path) -> dict[str, str]:
        """Until it is in `state`."""

        def there() -> bool:
            return self.show(job)["JobState"] == state

        until(there, lambda: f"{self.show(job)['JobState']}, not {state}\n{tail(log)}")
        return self.show(job)


def tail(log: Path) -> str:
    return log.read_text()[-8000:] if log.is_file() else f"no {log}"
