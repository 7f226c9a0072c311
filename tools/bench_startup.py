"""Start-up: how long `ark --help` and the demo's first training step take from a cold start.

    python tools/bench_startup.py [--rounds 3] [--config RECIPE.yaml] [more of `ark fit`]

The demo's shards must be there (`make demo` writes them). Before its first step it scores the test
split once for the report's column `start`; `without the start's scores` leaves that out
(--run.baseline=false).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ROOT = Path(__file__).resolve().parents[1]


class FirstStep(Callback):
    """Ends the process after the first optimiser step, without goodbye."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        os._exit(os.EX_OK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        fit = ["fit", f"--config={options.config}", f"--run.root={folder}", "--run.overwrite=true"]
        fit += [
            "--run.wandb=off",
            '--trainer.callbacks=[{"class_path": "bench_startup.FirstStep"}]',
        ]
        ways = {
            "ark --help": ["--help"],
            "first step": [*fit, *more],
            "first step, without the start's scores": [*fit, "--run.baseline=false", *more],
        }
        for name, args in ways.items():
            times = [seconds(args) for _ in range(options.rounds)]
            print(f"{name}: {median(times):.1f} s (of {', '.join(f'{t:.1f}' for t in times)})")


def seconds(args: list[str]) -> float:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "ark", *args]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
