"""torchrun on two hosts, each with a network and a name of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stoppable import STEPS

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HOSTS = Path(__file__).with_name("hosts.sh")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder that `hosts.sh run` wants."""
    monkeypatch.setenv("ARK_HOSTS", str((os.getpid() + 125) % 250))
    made = subprocess.run([HOSTS, "up", tmp_path], capture_output=True, text=True, check=False)
    if made.returncode:
        subprocess.run([HOSTS, "down"], check=True)
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    yield tmp_path
    subprocess.run([HOSTS, "down"], check=True)


def torchrun(hosts: Path, folder: Path, kills: object) -> list[subprocess.Popen[str]]:
    tests = HOSTS.parent.parent
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"}
    program = ["-m", "stoppable", str(folder), "--kills", json.dumps(kills)]
    shape = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=n1", "--master-port=29511"]
    started = []
    for n in range(2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", *shape, f"--node-rank={n}"]
        command = [str(HOSTS), "run", str(n + 1), str(hosts), *torchrun, *program]
        options = {"env": environment, "text": True, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **options))  # type: ignore[call-overload]
    return started


def test_stopped_on_one_host_the_run_goes_on_the_same(hosts: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, kills, codes in (
        (whole, {}, [0, 0]),
        (cut, {1: {"backward:4": [signal.SIGTERM]}}, [1, 1]),  # torchrun's code for any failure
        (cut, {}, [0, 0]),
    ):
        folder.mkdir(exist_ok=True)
        started = torchrun(hosts, folder, kills)
        said = [process.communicate(timeout=600)[1] for process in started]
        assert [process.returncode for process in started] == codes, said
        if kills:
            assert "stopped by SIGTERM after step 6; checkpoint" in said[0]
    assert (whole / "lines0_0").read_text().count("backward") == 2 * STEPS
    expected, found = (torch.load(f / "end.pt", weights_only=True) for f in (whole, cut))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
