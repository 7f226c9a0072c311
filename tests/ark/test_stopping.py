"""Signals: all ranks stop after the same whole step, and the run that goes on ends the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import stoppable
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from ark.checkpoints.saving import LAST
from ark.errors import ConfigError
from ark.stopping import INTERRUPTED, GracefulStop, Interrupted, requeue_job, resolve_auto

TERM, USR1, INT = (int(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ark.stopping"])  # what takes seconds to import
Kills = Mapping[int, Mapping[str, list[int]]]  # rank -> when -> signals


def child(environment: dict[str, str], args: list[str]) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    stoppable.main(args)


def session(folder: Path, kills: Kills, ranks: int = 1, *more: object) -> list[int | None]:
    """The exit code of each rank."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(ranks):
        environment = {} if ranks == 1 else torchrun(rank, ranks, port)
        args = [str(folder), "--kills", json.dumps(kills), *map(str, more)]
        process = CONTEXT.Process(target=child, args=(environment, args))
        process.start()
        started.append(process)
    for process in started:
        process.join(timeout=300)
        if process.exitcode is None:
            for other in started:
                other.kill()
            pytest.fail("hangs")
    return [process.exitcode for process in started]


def torchrun(rank: int, ranks: int, port: str) -> dict[str, str]:
    """What torchrun tells the ranks of one host."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def lines(folder: Path, rank: int, number: int) -> list[str]:
    return (folder / f"lines{rank}_{number}").read_text().splitlines()


def saved_step(folder: Path) -> int:
    return torch.load(folder / LAST, weights_only=True)["global_step"]


def assert_same_end(one: Path, other: Path) -> None:
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (one, other))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def logged(folder: Path) -> list[list[Any]]:
    """Every logged number with its step, over all sessions."""
    tables = [pd.read_csv(path) for path in folder.glob("logs/*/metrics.csv")]
    table = pd.concat(tables).melt(["epoch", "step"], ["lr", "val"]).dropna()
    rows = table[["step", "variable", "value"]].drop_duplicates()
    return rows.sort_values(["variable", "step"]).to_numpy().tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[int, Path]:
    """Runs that nobody stopped, by the number of ranks."""
    folders = {ranks: tmp_path_factory.mktemp(f"whole{ranks}") for ranks in (1, 2)}
    for ranks, folder in folders.items():
        assert session(folder, {}, ranks) == [0] * ranks
    return folders


@pytest.mark.parametrize(
    ("when", "number", "step"),
    [
        ("train:4", USR1, 5),  # between the batches of a step
        ("backward:4", TERM, 5),
        ("backward:4", INT, 5),
        ("val:6", TERM, 6),
        ("val:12", USR1, 12),  # trained to its end
    ],
)
def test_stops_after_the_step_and_goes_on(
    whole: dict[int, Path], tmp_path: Path, when: str, number: int, step: int
) -> None:
    assert session(tmp_path, {0: {when: [number]}}) == [INTERRUPTED]
    assert saved_step(tmp_path) == step
    trained = [line for line in lines(tmp_path, 0, 0) if line.startswith("backward")]
    assert trained[-2:] == [f"backward:{step - 1}"] * stoppable.ACCUMULATED
    if when.startswith("val"):
        assert lines(tmp_path, 0, 0).count(when) == 1  # the rest of the validation is left out
    assert session(tmp_path, {}) == [0]
    assert_same_end(whole[1], tmp_path)
    # Lightning logs a step after its end; a validation is redone by ark.run.Validation
    lost = [step - 1, "val" if when.startswith("val") else "lr"]
    assert logged(tmp_path) == [row for row in logged(whole[1]) if row[:2] != lost]


def test_stops_in_a_score_without_a_checkpoint(tmp_path: Path) -> None:
    assert session(tmp_path, {0: {"test:0": [USR1]}}) == [INTERRUPTED]
    assert lines(tmp_path, 0, 0) == ["test:0"]
    assert not (tmp_path / LAST).exists()


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    assert session(tmp_path, {0: {"train:4": [INT, INT]}}) == [1]
    assert lines(tmp_path, 0, 0)[-1] == "train:4"
    assert not (tmp_path / LAST).exists()


def test_workers_outlive_what_slurm_sends_them(whole: dict[int, Path], tmp_path: Path) -> None:
    options = ("--workers", 1, "--pause", 0.1)
    assert session(tmp_path, {0: {"train:3": [TERM]}}, 1, *options) == [INTERRUPTED]
    assert saved_step(tmp_path) == 4
    assert session(tmp_path, {0: {"train:6": [USR1]}}, 1, *options) == [INTERRUPTED]
    assert session(tmp_path, {}, 1, *options) == [0]
    assert_same_end(whole[1], tmp_path)


@pytest.mark.parametrize(
    "kills",
    [
        {1: {"backward:4": [TERM]}},
        {0: {"train:5": [USR1]}, 1: {"backward:4": [USR1]}},  # rank 1 is in its backward
        {0: {"train:5": [TERM]}, 1: {"backward:4": [TERM]}},
        {0: {"val:6": [TERM]}},
        {1: {"backward:11": [USR1]}},  # too late to be heard before the last validation
    ],
)
def test_all_ranks_stop_after_the_same_step(
    whole: dict[int, Path], tmp_path: Path, kills: Kills
) -> None:
    assert session(tmp_path, kills, 2, "--slow", 1) == [INTERRUPTED] * 2
    trained = [
        [line for line in lines(tmp_path, rank, 0) if line.startswith("backward")]
        for rank in range(2)
    ]
    assert trained[0] == trained[1]
    assert len(trained[0]) == saved_step(tmp_path) * stoppable.ACCUMULATED
    assert session(tmp_path, {}, 2) == [0, 0]
    assert_same_end(whole[2], tmp_path)


def test_outside_of_training_a_signal_ends_at_once() -> None:
    before = {number: signal.getsignal(number) for number in (TERM, USR1, INT)}
    try:
        with pytest.raises(Interrupted) as raised, GracefulStop(None).listening():
            os.kill(os.getpid(), TERM)
        assert raised.value.code == INTERRUPTED
        for number in (TERM, USR1):  # too late to matter: it would look killed
            os.kill(os.getpid(), number)
        assert signal.getsignal(INT) is before[INT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("learned", [True, False])
def test_outside_of_training_a_job_that_made_a_step_is_queued_again(
    learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    asked: list[str] = []
    monkeypatch.setattr("ark.stopping.requeue_job", lambda: asked.append("again") or "")
    before = signal.getsignal(USR1)
    stop = GracefulStop(None)
    stop._learned = learned
    try:
        with pytest.raises(Interrupted), stop.listening():
            os.kill(os.getpid(), USR1)
    finally:
        signal.signal(USR1, before)
    assert asked == ["again"] * learned


def test_lightning_still_has_what_is_replaced() -> None:
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_auto_goes_on_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    assert resolve_auto("auto", tmp_path / "none", overwrite=False) is None
    (tmp_path / LAST).touch()
    assert resolve_auto("auto", tmp_path, overwrite=False) == "last"
    assert resolve_auto(None, tmp_path, overwrite=True) is None
    assert resolve_auto("x.ckpt", tmp_path, overwrite=True) == "x.ckpt"
    with pytest.raises(ConfigError, match="overwrite"):
        resolve_auto("auto", tmp_path, overwrite=True)


def test_requeues_a_job_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert requeue_job().startswith("job 12 is queued again")
    assert (tmp_path / "said").read_text() == "requeue 12\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_job()
    assert (tmp_path / "said").read_text() == "requeue 11_3\n"
    scontrol.write_text("#!/bin/sh\necho disabled >&2; exit 1\n")
    assert requeue_job() == "SLURM did not requeue job 11_3: disabled; submit it again"
    scontrol.unlink()
    assert "No such file" in requeue_job()
