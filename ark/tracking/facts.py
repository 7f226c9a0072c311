"""What a run was made of: its code, the machine, and the data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch

CODE = Path(__file__).resolve().parents[1]  # of ark
_TOLD = 50  # untracked files whose names are recorded
LARGEST_PATCH = 10_000_000  # bytes; a larger one is a data file under version control


@dataclass(frozen=True)
class DatasetVersion:
    """Which data a dataset was, whatever its name says.

    Args:
        index: path or URL of the index of its shards.
        sha256: of that index, which holds the sha256 of every shard.
        samples: by split.
    """

    index: str
    sha256: str
    samples: dict[str, int]


@dataclass(frozen=True)
class GitState:
    """Of the repository of a folder."""

    root: Path
    commit: str
    branch: str
    remote: str  # without a password
    patch: str  # `git diff HEAD`; "" where nothing differs from the commit
    untracked: tuple[str, ...]  # paths

    @classmethod
    def of(cls, folder: Path) -> GitState | None:
        """None: no repository, no commit yet, or no git."""
        root, commit = (_line(folder, "rev-parse", what) for what in ("--show-toplevel", "HEAD"))
        if not root or not commit:
            return None
        untracked = _git(Path(root), "ls-files", "--others", "--exclude-standard")
        return cls(
            Path(root),
            commit,
            _line(folder, "rev-parse", "--abbrev-ref", "HEAD"),
            _without_password(_line(folder, "remote", "get-url", "origin")),
            _git(Path(root), "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff"),
            tuple(untracked.splitlines()),
        )

    def record(self) -> dict[str, Any]:
        """As plain data, without the patch but with the name of its file."""
        return {
            "commit": self.commit,
            "branch": self.branch,
            "remote": self.remote,
            "dirty": bool(self.patch or self.untracked),
            "patch": patch_name(self),
            "untracked": [*self.untracked[:_TOLD]],
            "untracked_files": len(self.untracked),
        }


def patch_name(state: GitState) -> str | None:
    """The same for the same changes: sessions of one run share the file."""
    if not state.patch:
        return None
    return f"{state.commit[:8]}-{hashlib.sha256(state.patch.encode()).hexdigest()[:8]}.patch"


def write_patches(states: Mapping[str, GitState], folder: Path) -> list[Path]:
    """`<folder>/<patch_name>` of what differs from its commit; leaves out what is no source."""
    written = []
    for state in states.values():
        content, name = state.patch.encode(), patch_name(state)
        if name is not None and len(content) <= LARGEST_PATCH:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            written.append(folder / name)
    return written


def repositories() -> dict[str, GitState]:
    """That of Ark, and where another one it is, that of the working directory: own heads, own
    recipes."""
    found = {"ark": GitState.of(CODE), "project": GitState.of(Path.cwd())}
    if found["ark"] and found["project"] and found["ark"].root == found["project"].root:
        del found["project"]
    return {name: state for name, state in found.items() if state is not None}


def environment(world_size: int = 1) -> dict[str, Any]:
    """Of this process: what another one needs to know to do the same again. Plain data."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "world_size": world_size,
    }
    slurm = {
        name.removeprefix("SLURM_").lower(): value
        for name, value in sorted(os.environ.items())
        if name in _SLURM
    }
    return {**found, "slurm": slurm} if slurm else found


_SLURM = {
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST"),
    *("SLURM_NNODES", "SLURM_NTASKS", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"),
    *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
}


def _line(folder: Path, *args: str) -> str:
    return _git(folder, *args).strip()


def _git(folder: Path, *args: str) -> str:
    """What git says; "" where it cannot. It never asks, and never takes long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            timeout=20,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode(errors="replace")


def _without_password(remote: str) -> str:
    parts = urlsplit(remote)
    if "@" not in parts.netloc:
        return remote
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
