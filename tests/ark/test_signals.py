"""Workers end with their trainer, whatever they do; a wait in C++ ends by a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess

import pytest

from ark.signals import at_once, end_workers, outlive_signals

FORK = multiprocessing.get_context("fork")


def work() -> None:
    outlive_signals()
    time.sleep(100)


@pytest.fixture
def worker() -> BaseProcess:
    process = FORK.Process(target=work, daemon=True)
    process.start()
    time.sleep(0.5)
    return process


@pytest.mark.parametrize("hangs", [False, True])
def test_the_trainer_ends_its_workers(worker: BaseProcess, hangs: bool) -> None:
    os.kill(worker.pid, signal.SIGTERM)  # type: ignore[arg-type]
    time.sleep(0.2)
    assert worker.is_alive()
    if hangs:  # as where a disk does not answer
        os.kill(worker.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    handler = signal.getsignal(signal.SIGCHLD)
    end_workers()
    assert not worker.is_alive()
    assert worker.exitcode == (-signal.SIGKILL if hangs else 0)
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_wait_for_ranks_that_never_come_ends_by_a_signal() -> None:
    def wait() -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        with at_once():
            time.sleep(100)

    process = FORK.Process(target=wait)
    process.start()
    time.sleep(0.5)
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_handlers_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with at_once():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
