"""One W&B run over all sessions of a run, and a run that W&B cannot stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from wandb_read import Run, offline_runs

import ark.tracking.wandb_logger as wandb_logger_module
from ark.tracking.identity import WANDB_ID, has_key, run_id, wandb_mode
from ark.tracking.session import read_sessions, session
from ark.tracking.wandb_logger import AXIS, SteadyWandbLogger, mark_preempted, wandb_logger

REFUSED = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(autouse=True)
def _without_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def core() -> list[int]:
    """The processes of wandb's service that this one started."""
    told = subprocess.check_output(["ps", "-ww", "-eo", "pid,ppid,args"], text=True)  # whole lines
    rows = [line.split(maxsplit=2) for line in told.splitlines()]
    return [
        int(pid)
        for pid, parent, args in rows[1:]
        if "wandb-core" in args and int(parent) == os.getpid()
    ]


# -- which run ------------------------------------------------------------------------------


def test_the_first_session_draws_the_id_and_later_ones_keep_it(tmp_path: Path) -> None:
    drawn = run_id(tmp_path / "run")
    assert run_id(tmp_path / "run") == drawn
    assert run_id(tmp_path / "other") != drawn
    assert os.listdir(tmp_path / "run") == [WANDB_ID]  # nothing half written stays


def test_the_id_is_on_the_disk_before_wandb_starts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("too early"))
    logger = wandb_logger(tmp_path, "x", "offline")
    assert (tmp_path / WANDB_ID).read_text() == logger.version


def test_a_broken_id_is_said(tmp_path: Path, caplog) -> None:
    (tmp_path / WANDB_ID).write_text("")
    assert run_id(tmp_path)
    assert f"{WANDB_ID}: '' is no id of a W&B run" in caplog.text


@pytest.mark.parametrize(
    ("mode", "key", "env", "expected"),
    [
        ("auto", False, None, "offline"),
        ("auto", True, None, None),
        ("auto", False, "disabled", None),  # WANDB_MODE decides
        ("online", False, None, "online"),
        ("offline", True, "online", "offline"),
    ],
)
def test_modes(monkeypatch, mode, key, env, expected) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    if env:
        monkeypatch.setenv("WANDB_MODE", env)
    assert wandb_mode(mode) == expected


def test_a_key_is_found_where_wandb_looks_for_it(monkeypatch, tmp_path: Path) -> None:
    assert not has_key()
    (tmp_path / "netrc").write_text("machine wandb.hospital.org login user password secret\n")
    assert not has_key()  # of another server
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.hospital.org/")
    assert has_key()


def test_other_ranks_are_silent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("rank 1 talks"))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(tmp_path, "x", "offline")
    with session([logger], tmp_path, {"a": 1}, {}):
        logger.log_metrics({"a": 1.0}, 0)
        logger.log_table("t", ["a"], [[1]])
        mark_preempted([logger])
    assert not list(tmp_path.iterdir())


# -- a session ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, 0),
        (ValueError("no"), 1),
        (KeyboardInterrupt(), 1),
        (SystemExit(), 0),
        (SystemExit(7), 7),
        (SystemExit("gone"), 1),
    ],
)
def test_every_way_out_closes_the_run(tmp_path: Path, stop, expected) -> None:
    logger = wandb_logger(tmp_path, "x", "offline")
    expecting = pytest.raises(type(stop)) if stop is not None else nullcontext()
    with expecting, session([logger], tmp_path, {"depth": {"a": [1, None]}}, {}):
        logger.log_metrics({"loss": 0.5}, step=3)
        if stop is not None:
            raise stop
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == expected
    assert run.series("loss", AXIS) == {3: 0.5}
    assert run.config["depth"] == {"a": [1, None]}
    assert wandb.run is None  # the next session in this process begins its own
    assert "WANDB_DATA_DIR" not in os.environ


def test_sessions_add_up_in_one_run(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        loggers = [wandb_logger(tmp_path, "x", "offline"), CSVLogger(tmp_path, "logs")]
        with session(loggers, tmp_path, {"seed": 5}, {}):
            loggers[0].log_metrics({"loss": 1 / number}, step=number)
        assert len(read_sessions(tmp_path)) == number
        time.sleep(1.1)  # folders are named by the second
    runs = offline_runs(tmp_path)
    assert [run.id for run in runs] == [(tmp_path / WANDB_ID).read_text()] * 3
    assert [run.config["sessions"] for run in runs] == [1, 2, 3]
    assert [run.series("loss", AXIS) for run in runs] == [{1: 1.0}, {2: 0.5}, {3: 1 / 3}]
    for run in runs:
        assert run.axes["*"] == AXIS
        (began,) = (json.loads(path.read_text()) for path in run.folder.glob("files/sessions.json"))
        assert len(began) == run.config["sessions"]  # a copy, as it was then


def test_a_requeued_session_is_preempted_and_not_finished(tmp_path: Path) -> None:
    logger = wandb_logger(tmp_path, "x", "offline")
    with session([logger], tmp_path, {}, {}):
        mark_preempted([logger])
    (run,) = offline_runs(tmp_path)
    assert len(run.of("preempting")) == 1
    assert run.exit_code == 1


# -- outages --------------------------------------------------------------------------------


@pytest.mark.slow  # wandb tries for 16 s
def test_without_a_server_a_run_goes_on_offline_and_says_so_once(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", REFUSED)
    monkeypatch.setattr(wandb_logger_module, "INIT_TIMEOUT", 5.0)
    logger = wandb_logger(tmp_path, "x", "auto")
    assert not logger.offline
    with caplog.at_level(logging.WARNING), session([logger], tmp_path, {"a": 1}, {}):
        began = time.monotonic()
        for step in range(20):
            logger.log_metrics({"loss": 1.0}, step)
        assert time.monotonic() - began < 5
    assert caplog.text.count("Training goes on") == 1
    assert "connection refused" in caplog.text
    (run,) = offline_runs(tmp_path)
    assert run.id == (tmp_path / WANDB_ID).read_text()
    assert len(run.series("loss", AXIS)) == 20
    assert run.config["a"] == 1


def test_when_wandbs_service_dies_the_run_goes_on_in_a_new_folder(tmp_path: Path, caplog) -> None:
    logger = wandb_logger(tmp_path, "x", "offline")
    with session([logger], tmp_path, {"a": 1}, {}):
        logger.log_metrics({"loss": 1.0}, 0)
        time.sleep(1.1)  # folders are named by the second
        for pid in core():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        for step in (1, 2, 3):
            logger.log_metrics({"loss": 1.0}, step)
    first, second = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert caplog.text.count("Training goes on") == 1
    run = Run(second)
    assert run.id == logger.version
    assert sorted(run.series("loss", AXIS)) == [1, 2, 3]
    assert first.name.endswith(run.id)


def test_where_nothing_helps_the_run_goes_on_in_silence(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", refuse)
    logger = wandb_logger(tmp_path, "x", "online")
    with session([logger], tmp_path, {"a": 1}, {}):
        logger.log_metrics({"loss": 1.0}, 0)
        logger.log_table("t", ["a"], [[1]])
        mark_preempted([logger])
    assert caplog.text.count("Training goes on") == 1
    assert logger.version == (tmp_path / WANDB_ID).read_text()


def test_a_fault_of_ours_is_no_outage(tmp_path: Path) -> None:
    logger = SteadyWandbLogger(save_dir=tmp_path, mode="offline")
    with pytest.raises(ValueError, match="ours"):
        logger.softly(lambda: _raise(ValueError("ours")))


def _raise(error: Exception) -> None:
    raise error
