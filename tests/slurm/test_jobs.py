"""`ark slurm submit` on real daemons: whatever ends a job, its run ends as if nothing had been."""

from __future__ import annotations

import io
import os
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from commands import write_recipe
from safetensors.torch import load_file
from slurm_cluster import Cluster, tail, until
from tracing import traced
from wandb_read import offline_runs

from ark.slurm.command import slurm
from ark.stopping import INTERRUPTED
from ark.tracking.wandb_logger import AXIS

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEPS = 24


class Job:
    """A submitted run of 24 steps, on two nodes with one rank each unless told otherwise."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str, pause: float = 0.25) -> None:
        folder.mkdir(exist_ok=True)
        recipe = write_recipe(
            folder,
            data={
                "image_size": 32,
                "batch_size": 4,
                "workers": 1,
                "only": ["tiny_findings/findings"],
            },
            model={"backbone": {"name": "test_efficientnet", "args": {"drop_path_rate": 0.2}}},
            cycle={"cycles": 2, "each": [{"lock": ["backbone"], "steps": 4}, {"steps": 8}]},
            run={
                "name": "run",
                "root": str(folder / "runs"),
                "wandb": "off",
                "pictures": 0,
                "baseline": False,
                "bootstraps": 0,
                "checkpoint_every": 9,
            },
        )
        self.cluster, self.folder, self.trace = cluster, folder / "runs" / "run", folder / "trace"
        callbacks = [
            {"class_path": "tracing.Trace", "init_args": {"folder": str(self.trace)}},
            {"class_path": "stoppable.Pause", "init_args": {"seconds": pause}},
        ]
        shape = [] if "--nodes=1" in options else ["--nodes=2"]
        common = ["--cpu-ranks=1", "--time=20", "--warn=60", "--config", str(recipe)]
        with redirect_stdout(io.StringIO()) as said:
            slurm(["submit", *shape, *common, f"--trainer.callbacks={callbacks}", *options])
        self.id = re.findall(r"job (\d+):", said.getvalue())[0]

    @property
    def log(self) -> Path:
        return self.folder / f"slurm-{self.id}.out"

    def reach(self, step: int) -> None:
        """Until both ranks have begun `step`."""
        until(lambda: traced(self.trace).get(step), lambda: f"no step {step}\n{tail(self.log)}")

    def restart(self, count: int) -> None:
        """Until SLURM has queued it again for the `count`th time."""
        until(lambda: self.cluster.show(self.id)["Restarts"] == str(count), lambda: tail(self.log))

    def end(self, state: str = "COMPLETED") -> dict[str, str]:
        return self.cluster.wait(self.id, state, self.log)

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "student.safetensors")


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing stopped."""
    job = Job(cluster, tmp_path_factory.mktemp("whole"))
    assert job.end()["Restarts"] == "0"
    assert sorted(traced(job.trace)) == list(range(STEPS))
    return job.weights()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_warned_three_times_it_ends_the_same_and_is_one_wandb_run(whole, cluster, tmp_path) -> None:
    job = Job(cluster, tmp_path, "--run.wandb=offline")
    for restarts, step in enumerate((4, 10, 16), start=1):
        job.reach(step)
        subprocess.run(["scancel", "-s", "USR1", job.id], check=True)
        job.restart(restarts)
    job.end()
    said = job.log.read_text()
    assert re.search(r"stopped by SIGUSR1 after step \d+ of 24 \(cycle 1/2", said)
    assert said.count(f"job {job.id} is queued again and goes on by itself") == 3
    assert sorted(traced(job.trace)) == list(range(STEPS))
    assert all(len(samples) == 4 for samples in traced(job.trace).values())  # no step twice
    assert_same(whole, job.weights())
    sessions = offline_runs(job.folder)
    assert [session.exit_code for session in sessions] == [INTERRUPTED] * 3 + [0]
    assert len({session.id for session in sessions}) == 1
    losses = [s.series("train/tiny_findings/findings/loss", AXIS) for s in sessions]
    assert sorted(step for series in losses for step in series) == list(range(STEPS))
    assert [s.of("preempting") != [] for s in sessions] == [True] * 3 + [False]


def test_preempted_by_slurm_it_ends_the_same(whole, cluster, tmp_path) -> None:
    job = Job(cluster, tmp_path)
    job.reach(5)
    subprocess.run(["scontrol", "requeue", job.id], check=True)  # as PreemptMode=REQUEUE does
    assert job.end()["Restarts"] == "1"
    assert "stopped by SIGTERM after step" in job.log.read_text()
    assert all(len(samples) == 4 for samples in traced(job.trace).values())
    assert_same(whole, job.weights())


def test_near_its_time_limit_it_is_queued_again(whole, cluster, tmp_path) -> None:
    job = Job(cluster, tmp_path, pause=2)  # SLURM looks at limits every 30 s
    job.reach(2)
    minutes = _elapsed(cluster, job) // 60 + 1
    subprocess.run(["scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}"], check=True)
    job.restart(1)
    subprocess.run(["scontrol", "update", f"JobId={job.id}", "TimeLimit=20"], check=True)
    job.end()
    assert "stopped by SIGUSR1 after step" in job.log.read_text()
    assert_same(whole, job.weights())


def test_cancelled_it_leaves_a_checkpoint(cluster, tmp_path) -> None:
    job = Job(cluster, tmp_path)
    job.reach(5)
    subprocess.run(["scancel", job.id], check=True)
    assert job.end("CANCELLED")["ExitCode"] == f"{INTERRUPTED}:0"
    step = torch.load(job.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == max(traced(job.trace)) + 1
    assert "--ckpt_path auto" in job.log.read_text()


def test_a_node_is_lost(whole, cluster, tmp_path) -> None:
    """Its daemon and everything on it: SLURM queues the job again, which waits for the node."""
    job = Job(cluster, tmp_path)
    job.reach(12)  # a checkpoint was written after step 9
    pid = int((cluster.folder / "slurmd-n2.pid").read_text())
    if cluster.two_hosts:  # as if its power were cut: nobody is told
        link = ["ip", "link", "set", f"arkv{os.environ['ARK_HOSTS']}-2"]
        subprocess.run([*link, "down"], check=True)
    else:
        os.kill(pid, 9)
    job.restart(1)
    if cluster.two_hosts:
        subprocess.run([*link, "up"], check=True)
    else:
        cluster.script("cluster.sh", "node", 2, cluster.folder)
    job.end()
    assert_same(whole, job.weights())


def test_an_array_of_seeds(cluster, tmp_path) -> None:
    job = Job(cluster, tmp_path, "--nodes=1", "--array=3,5")
    for seed in (3, 5):
        log = job.folder / f"slurm-{job.id}_{seed}.out"
        cluster.wait(f"{job.id}_{seed}", "COMPLETED", log)
        assert (job.folder / f"seed{seed}" / "results.json").is_file()
    three, five = (load_file(job.folder / f"seed{n}/model/student.safetensors") for n in (3, 5))
    assert any(not torch.equal(value, five[name]) for name, value in three.items())


def _elapsed(cluster: Cluster, job: Job) -> int:
    hours, minutes, rest = map(int, cluster.show(job.id)["RunTime"].split(":"))
    return 3600 * hours + 60 * minutes + rest
