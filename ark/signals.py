"""Signals that ask a run to stop. Imports nothing heavy: workers of the loaders need it too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ANSWER = 2.0  # seconds in which a worker that can end does so


def outlive_signals() -> None:
    """For a worker process, when it starts: the trainer decides when a worker ends.

    SLURM, torchrun and a terminal signal the workers along with the trainer. A worker that died of
    it would end the trainer in the middle of the step that it is about to finish. The first SIGTERM
    is taken for one of those; the second is the trainer's own, which waits some seconds for its
    workers before it sends one. A worker whose trainer is gone ends by itself: torch sees to that.
    SIGQUIT ends it at once.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    terms = 0

    def on_term(number: int, frame: FrameType | None) -> None:
        nonlocal terms
        terms += 1
        if terms > 1:
            os._exit(os.EX_OK)

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGQUIT, lambda *_: os._exit(os.EX_OK))


@contextmanager
def at_once() -> Iterator[None]:
    """For waiting in C++ for other ranks that may never come: SIGTERM and SIGUSR1 end the process.
    Python's own handlers are called only when that is over, which may take `run.timeout`."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_workers() -> None:
    """For the trainer, when nothing is to be loaded any more, whatever ended it.

    Python itself sends them one SIGTERM when it exits and waits: for ever, since they outlive it.
    One that does not answer (its disk hangs) is killed.
    """
    workers = [w for w in multiprocessing.active_children() if w.daemon and w.pid is not None]
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGQUIT)  # type: ignore[arg-type]
    end = time.monotonic() + _ANSWER
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
    late = [worker for worker in workers if worker.is_alive()]
    if late:
        # torch's handler would raise an error of its own
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in late:
            worker.kill()
            worker.join(_ANSWER)
        signal.signal(signal.SIGCHLD, handler)
