"""The job's script: what SLURM and bash read in it, and what is refused before it is queued."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ark.errors import ConfigError
from ark.slurm import work
from ark.slurm.command import slurm
from ark.slurm.job import seconds
from ark.slurm.work import bash_array

RUN = {"name": "long/xrays", "root": "runs", "overwrite": False, "alone": False}
REST = {"data": {"batch_size": 24}, "trainer": {"accumulate_grad_batches": 2}}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `ark fit --print_config` would say of the run; in an empty folder."""
    run = dict(RUN)
    monkeypatch.setattr(work, "resolved", lambda options: {"run": run, **REST})
    monkeypatch.chdir(tmp_path)
    return run


def script(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    slurm(["submit", "--time=1-00", "--config=r.yaml", "--dry-run", *options])
    return capsys.readouterr().out


def directives(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(found)


def command(text: str, folder: Path, **environment: str) -> list[str]:
    """The command that bash makes of the script, with a program in place of srun."""
    (folder / "srun").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (folder / "srun").chmod(0o755)
    path = folder / "job.sh"
    path.write_text(re.sub("^export PATH=.*:", f"export PATH={folder}:", text, flags=re.MULTILINE))
    given = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-2]", **environment}
    made = subprocess.run(["bash", path], capture_output=True, text=True, env=os.environ | given)
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()[1:]  # less the line that says where it runs


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86400), ("1-2:03", 93780),
        ("1-2:03:04", 93784),
    ],
)  # fmt: skip
def test_times_as_sbatch_takes_them(time: str, expected: int) -> None:
    assert seconds(time) == expected


def test_gpus(recipe: dict[str, Any], capsys: Any, tmp_path: Path) -> None:
    text = script(capsys, "--nodes=3", "--gpus-per-node=4", "--cpus-per-task=6", "--mem=64G")
    assert directives(text) == {
        "job-name": "long-xrays",
        "nodes": "3",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "6",
        "mem": "64G",
        "time": "1-00",
        "signal": "USR1@120",
        "requeue": "",
        "open-mode": "append",
        "chdir": str(tmp_path),
        "output": f"{tmp_path}/runs/long/xrays/slurm-%j.out",
    }
    words = command(text, tmp_path, SLURM_CPUS_PER_TASK="6")
    assert words[:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=6"]
    assert words[3:6] == ["-m", "ark", "fit"]
    assert words[6:] == [
        "--config=r.yaml",
        "--trainer.num_nodes=3",
        "--trainer.devices=4",
        "--trainer.accelerator=gpu",
        "--ckpt_path=auto",
    ]


def test_options_reach_fit_as_they_are(recipe: dict[str, Any], capsys: Any, tmp_path: Path) -> None:
    odd = ["--a=it's $HOME `x`", '--b={"c": [1, 2]}', "--d=*"]
    assert command(script(capsys, "--cpu-ranks=1", *odd), tmp_path)[7:10] == odd
    assert "@" not in re.sub(r"USR1@|\$\{options\[@\]\}", "", script(capsys, "--cpu-ranks=1"))


def test_an_array_gives_each_seed_a_run(
    recipe: dict[str, Any], capsys: Any, tmp_path: Path
) -> None:
    text = script(capsys, "--cpu-ranks=1", "--array=3-5%2")
    assert directives(text)["array"] == "3-5%2"
    assert directives(text)["output"].endswith("/slurm-%A_%a.out")
    words = command(text, tmp_path, SLURM_ARRAY_TASK_ID="4")
    assert words[-2:] == ["--seed_everything=4", "--run.name=long/xrays/seed4"]


def test_submits_once_and_keeps_the_script(
    recipe: dict[str, Any], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 17\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm(["submit", "--time=1-00", "--config=r.yaml", "--cpu-ranks=1"])
    assert capsys.readouterr().out.startswith("job 17: runs/long/xrays/job.sh")
    assert (tmp_path / "runs/long/xrays/job.sh").read_text().startswith("#!/bin/bash\n")
    sbatch.write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    with pytest.raises(ConfigError, match="no such partition"):
        slurm(["submit", "--time=1-00", "--config=r.yaml", "--cpu-ranks=1"])
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="login node"):
        slurm(["submit", "--time=1-00", "--config=r.yaml", "--cpu-ranks=1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--gpus-per-node None, --cpu-ranks None"),
        (["--gpus-per-node=1", "--cpu-ranks=1"], "expected one of them"),
        (["--gpus-per-node=0"], "--gpus-per-node 0; expected at least 1"),
        (["--cpu-ranks=1", "--nodes=0"], "--nodes 0"),
        (["--cpu-ranks=1", "--time=1"], "--time 1 is 60 s, --warn 120"),
        (["--cpu-ranks=1", "--time=soon"], "--time soon; expected minutes"),
        (["--cpu-ranks=1", "--array=a"], "--array a"),
        (["--cpu-ranks=1", "--ckpt_path=last"], "--ckpt_path is set by the job itself"),
        (["--cpu-ranks=1", "--trainer.devices=2"], "--trainer.devices is set"),
        (["--cpu-ranks=1", "--array=0-2", "--seed_everything=5"], "--seed_everything is set"),
        (["--cpu-ranks=1", "--only=[a]"], "add --ablate"),
        (["--cpu-ranks=1", "--seeds=[0,1]"], "add --ablate"),
        (["--cpu-ranks=8"], "data.batch_size=24: a step's samples do not split over 8 ranks x 2"),
        (["--cpu-ranks=1", "--ablate=g.yaml"], "takes recipe, options and array from the grid"),
    ],
)
def test_refuses(recipe: dict[str, Any], capsys: Any, options: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        script(capsys, *options)


@pytest.mark.parametrize("key", ["overwrite", "alone"])
def test_refuses_what_cannot_go_on(recipe: dict[str, Any], capsys: Any, key: str) -> None:
    recipe[key] = True
    with pytest.raises(ConfigError, match=f"run.{key}=true"):
        script(capsys, "--cpu-ranks=1")


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_refuses_names_that_hide_the_job(recipe: dict[str, Any], capsys: Any, name: str) -> None:
    recipe["name"] = name
    with pytest.raises(ConfigError, match=name):
        script(capsys, "--cpu-ranks=1")


def test_bash_array_of_nothing() -> None:
    assert bash_array([]) == "options=(\n)"
