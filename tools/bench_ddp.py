"""Ways to average gradients over ranks where heads and locks change: bytes and time of a step.

    python tools/bench_ddp.py [--ranks 2] [--steps 8] [--cycles 3] [--out runs/bench_ddp]

Runs `ark fit` of the quickstart's four tasks on CPU processes, each task locked (backbone) and
then released, once for each way:

- phase: Ark's own, DDP wrapped anew for each phase;
- once: Lightning's DDP with find_unused_parameters, wrapped once;
- end: no DDP; one all-reduce of all gradients when the step's backward is done.

The ideal of a phase is 4 bytes for each parameter that got a gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from tabulate import tabulate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ark.distributed.ddp import PhaseDDPStrategy
from ark.grid import arguments

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"phase": "CountedPhases", "once": "CountedOnce", "end": "AtTheEnd"}


def counted(strategy, bucket):  # type: ignore[no-untyped-def] # DDP refuses annotations as strings
    """DDP's own all-reduce, whose bytes are added up."""
    strategy.sent += bucket.buffer().numel() * bucket.buffer().element_size()
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]


class CountedPhases(PhaseDDPStrategy):
    sent = 0

    def enter_phase(self) -> None:
        super().enter_phase()
        assert self.wrapper is not None
        self.wrapper.register_comm_hook(self, counted)


class CountedOnce(DDPStrategy):
    sent = 0

    def __init__(self, find_unused_parameters: bool = True, **options: Any) -> None:
        super().__init__(find_unused_parameters=find_unused_parameters, **options)

    def configure_ddp(self) -> None:
        super().configure_ddp()
        self.model.register_comm_hook(self, counted)  # type: ignore[union-attr, operator]


class AtTheEnd(DDPStrategy):
    sent = 0

    def configure_ddp(self) -> None:
        pass

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        assert self.lightning_module is not None
        grads = [p.grad for p in self.lightning_module.parameters() if p.grad is not None]
        whole = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(whole)
        self.sent += whole.numel() * whole.element_size()
        for g, part in zip(grads, whole.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g) / dist.get_world_size())


class Meter(Callback):
    """Time and bytes of every step, by task and lock; written by rank 0."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.rows: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.before: Any = trainer.strategy.sent  # type: ignore[attr-defined]
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        seconds = time.perf_counter() - self.began
        phase = module.cycle.at(trainer.global_step - 1).phase
        moved = 4 * sum(p.numel() for p in module.network.parameters() if p.grad is not None)
        sent = trainer.strategy.sent - self.before  # type: ignore[attr-defined]
        self.rows.append([f"{phase.name} {phase.state}", seconds, sent, moved])

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--out", default="runs/bench_ddp")
    options = parser.parse_args()
    found = {way: measure(way, options) for way in WAYS}
    rows = []
    for phase in found["phase"]:
        seconds = {way: median(row[0] for row in found[way][phase]) for way in WAYS}
        row: list[Any] = [phase]
        for way in WAYS:
            sent, moved = (sum(column) for column in list(zip(*found[way][phase], strict=True))[1:])
            row += [sent / moved, seconds[way] / seconds["once"]]
        rows.append(row)
    titles = [title for way in WAYS for title in (f"{way}: bytes / ideal", f"{way}: time / once")]
    print(tabulate(rows, ["phase", *titles], tablefmt="github", floatfmt=".2f"))


def measure(way: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """By phase the (seconds, bytes sent, ideal bytes) of its steps."""
    file = Path(options.out) / f"{way}.json"
    meter = {"class_path": "bench_ddp.Meter", "init_args": {"file": str(file)}}
    given = {
        "cycle.each": [{"lock": ["backbone"], "steps": options.steps}, {"steps": options.steps}],
        "data.batch_size": 8,
        "data.image_size": 128,
        "data.workers": 0,
        "cycle.cycles": options.cycles,
        "run.root": options.out,
        "run.name": way,
        "run.wandb": "off",
        "run.overwrite": True,
        "run.baseline": False,
        "run.pictures": 0,
        "trainer.callbacks": [meter],
        "trainer.limit_val_batches": 0,
        "trainer.limit_test_batches": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": options.ranks,
        "trainer.strategy": {"class_path": f"bench_ddp.{WAYS[way]}"},
    }
    command = [sys.executable, "-m", "ark", "fit"]
    command += [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", *arguments(given)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)
    by_phase: dict[str, list[list[float]]] = defaultdict(list)
    for phase, *numbers in json.loads(file.read_text()):
        by_phase[phase].append(numbers)
    return by_phase


if __name__ == "__main__":
    main()
