#!/usr/bin/env python
"""How long saving a checkpoint holds training up, and how much memory it takes.

    python tools/bench_checkpoints.py [--megabytes 400] [--rounds 5] [--device cpu] [--folder DIR]

A toy trains in place on a state of that size (student, teacher, two moments), a save in the middle
of each round. Contestants alternate; medians over the rounds:
  call      how long `save_checkpoint` keeps the loop, a save
  cpu       seconds of a core that the round took more than one without a save
  memory    the most that the process grew by, in sizes of the state
Compare ratios, and within one run.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from tabulate import tabulate
from torch import Tensor

from ark.checkpoints.saving import SealedCheckpointIO

PARTS = 64  # tensors of each of the four kinds


@dataclass
class Measured:
    call: list[float] = field(default_factory=list)  # seconds
    cpu: list[float] = field(default_factory=list)  # seconds, of the whole round
    memory: list[float] = field(default_factory=list)  # bytes


class Toy:
    """Parameters, a teacher and moments that every step changes in place."""

    def __init__(self, megabytes: int, device: str) -> None:
        size = max(megabytes * 1_000_000 // (4 * 4 * PARTS), 1)
        self.kinds = [[torch.ones(size, device=device) for _ in range(PARTS)] for _ in range(4)]
        self.product = torch.ones(700, 700, device=device)
        self.step = 0

    def checkpoint(self) -> dict[str, Any]:
        student, teacher, *moments = self.kinds
        state = {f"student.{i}": value for i, value in enumerate(student)}
        state |= {f"teacher.{i}": value for i, value in enumerate(teacher)}
        return {"global_step": self.step, "state_dict": state, "optimizer_states": moments}

    def train(self) -> None:
        """A step that computes more than it moves: one tensor in `PARTS` changes."""
        self.step += 1
        for _ in range(4):
            torch.mm(self.product, self.product)
        for tensors in self.kinds:
            tensors[self.step % PARTS].mul_(0.999)

    def bytes(self) -> int:
        return sum(value.nbytes for tensors in self.kinds for value in tensors)


def contestants() -> Iterator[tuple[str, CheckpointIO | None]]:
    yield "no save", None
    yield "Lightning", TorchCheckpointIO()
    yield "Lightning async", AsyncCheckpointIO(TorchCheckpointIO())
    yield "ark, background: false", SealedCheckpointIO(background=False)
    yield "ark", SealedCheckpointIO()


def measure(toy: Toy, io: CheckpointIO | None, folder: Path, steps: int) -> tuple[float, ...]:
    before = peak(reset=True)
    began, call = time.process_time(), 0.0
    for step in range(steps):
        toy.train()
        if io is not None and step == steps // 3:
            synchronize(toy.product)
            asked = time.perf_counter()
            io.save_checkpoint(toy.checkpoint(), folder / "last.ckpt")
            call = time.perf_counter() - asked
    if io is not None:
        io.teardown()
    synchronize(toy.product)
    return call, time.process_time() - began, peak() - before


def synchronize(value: Tensor) -> None:
    if value.is_cuda:
        torch.cuda.synchronize()


def peak(reset: bool = False) -> int:
    """The most memory that this process had since the last reset, in bytes (Linux)."""
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier rounds left counts as memory else
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="on the disk in question; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    toy = Toy(options.megabytes, options.device)
    found: dict[str, Measured] = {name: Measured() for name, _ in contestants()}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for _ in range(options.rounds + 1):  # the first one warms up
            for name, io in contestants():
                call, took, grown = measure(toy, io, Path(folder), options.steps)
                found[name].call.append(call)
                found[name].cpu.append(took)
                found[name].memory.append(grown)
    print(table(found, toy.bytes()))


def table(found: dict[str, Measured], size: int) -> str:
    def median(values: list[float]) -> float:
        return statistics.median(values[1:])

    bare, base = median(found["no save"].cpu), median(found["Lightning"].call)
    rows = [
        [
            name,
            f"{median(m.call):.3f}",
            f"{median(m.call) / base:.2f}",
            f"{median(m.cpu) - bare:.2f}",
            f"{median(m.memory) / size:.1f}",
        ]
        for name, m in found.items()
    ]
    heads = ["saved by", "call (s)", "of Lightning's", "more CPU (s)", "memory (states)"]
    note = f"state {size / 1e6:.0f} MB; a round without a save {bare:.2f} CPU seconds\n\n"
    return note + tabulate(rows, heads, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
