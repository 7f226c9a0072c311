"""AGVM at a large batch: detection on the phantoms with and without it, and the variance ratios.

    python tools/bench_agvm.py [--batch 64] [--steps 60] [--rate 0.02] [--out runs/bench_agvm]

Two `ark fit` of FCOS on phantom_boxes from ImageNet weights, with SGD, and the same steps, seed and
rate. Without AGVM the factors stay 1 (momentum 1 less a hair): variances are measured in both.
A ratio is a module's variance over the backbone's: AGVM means to bring it to 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from ark.grid import arguments

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
TASK = "phantom_boxes/boxes"
MODULES = ["heads.phantom_boxes/boxes.neck", "heads.phantom_boxes/boxes.detector"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--out", default="runs/bench_agvm")
    options = parser.parse_args()
    rows = [row(on, options) for on in (False, True)]
    titles = ["AGVM", *(f"ratio of {name.split('.')[-1]}" for name in MODULES)]
    titles += [*(f"factor of {name.split('.')[-1]}" for name in MODULES), "loss", "AP50"]
    print(tabulate(rows, titles, tablefmt="github", floatfmt=".3f"))


def row(on: bool, options: argparse.Namespace) -> list[Any]:
    name = "with" if on else "without"
    # a factor that keeps 0.999999 of itself stays 1
    agvm = {"interval": 5, "warmup": options.steps // 4, "modules": MODULES}
    agvm |= {"momentum": 0.9 if on else 0.999999}
    head = {"class_path": "heads.detection.DetectionHead", "init_args": {"detector": "fcos"}}
    sgd = {"class_path": "torch.optim.SGD"}
    sgd["init_args"] = {"lr": options.rate, "momentum": 0.9, "weight_decay": 1e-4}  # type: ignore[assignment]
    given = {
        "cycle.each": [{"steps": options.steps}],
        "data.only": [TASK],
        "data.heads": {"detection": head},
        "data.batch_size": options.batch,
        "data.image_size": 128,
        "model.optimizer": sgd,
        "model.consistency": {"class_path": "ark.schedules.Constant", "init_args": {"value": 0}},
        "model.agvm": agvm,
        "cycle.cycles": 1,
        "run.root": options.out,
        "run.name": name,
        "run.wandb": "off",
        "run.overwrite": True,
        "run.baseline": False,
        "trainer.log_every_n_steps": 1,
    }
    command = [sys.executable, "-m", "ark", "fit", f"--config={RECIPE}", *arguments(given)]
    subprocess.run(command, check=True)
    folder = Path(options.out) / name
    logs = pd.read_csv(folder / "logs" / "version_0" / "metrics.csv")
    ratios = [
        (logs[f"agvm/{module}/variance"] / logs["agvm/backbone/variance"]).dropna().tail(5).mean()
        for module in MODULES
    ]
    factors = [logs[f"agvm/{module}/factor"].dropna().iloc[-1] for module in MODULES]
    loss = logs[f"train/{TASK}/loss"].dropna().tail(10).mean()
    results = json.loads((folder / "results.json").read_text())
    return [name, *ratios, *factors, loss, results["student"][TASK]["map50"]]


if __name__ == "__main__":
    main()
