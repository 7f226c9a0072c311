"""Signals that ask a run to stop. Imports nothing heavy: workers of the loaders need it too."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from types import FrameType


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


def end_workers() -> None:
    """For the trainer, when nothing is to be loaded any more, whatever ended it.

    Python itself sends them one SIGTERM when it exits and waits: for ever, since they outlive it.
    """
    for worker in multiprocessing.active_children():
        if worker.daemon and worker.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGQUIT)
