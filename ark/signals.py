"""Signals that ask a run to stop. Imports nothing heavy: workers of the loaders need it too."""

from __future__ import annotations

import os
import signal
from types import FrameType


def outlive_signals() -> None:
    """For a worker process, when it starts: the trainer decides when a worker ends.

    SLURM, torchrun and a terminal signal the workers along with the trainer. A worker that died of
    it would end the trainer in the middle of the step that it is about to finish. The first SIGTERM
    is taken for one of those; the second is the trainer's own, which waits some seconds for its
    workers before it sends one. A worker whose trainer is gone ends by itself: torch sees to that.
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
