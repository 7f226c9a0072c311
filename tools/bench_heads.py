"""Heads on the real X-rays, one `ark fit` each, as one table.

    python tools/bench_heads.py [--cycles 10] [--only dino fcos] [--out runs/bench_heads]

DINO and FCOS on covid_cxr's lung boxes, UPerNet and UNet++ on wingspan's masks, from ImageNet
weights and with the recipe configs/recipes/chest_xrays.yaml (224 px, batches of 16). The data is
that of $ARK_DATA (default ../shared/data); its shards are written first where they are missing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "recipes" / "chest_xrays.yaml"
BOXES, MASKS = "covid_cxr/lung_boxes", "wingspan/organs"
DETECTION = "heads.detection.DetectionHead"
SEGMENTATION = "heads.segmentation.SegmentationHead"
# A CPU's size of Foundation X's DINO: 900 queries and 6 + 6 layers of width 256 there.
SMALL_DINO = {"width": 128, "heads": 8, "encoder_layers": 2, "decoder_layers": 3, "ffn": 512}
SMALL_DINO |= {"queries": 100, "denoising": 50}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fcos": (BOXES, DETECTION, {"detector": "fcos"}),
    "dino": (BOXES, DETECTION, {"detector": "dino", "detector_args": SMALL_DINO}),
    "upernet": (MASKS, SEGMENTATION, {"decoder": "UPerNet"}),
    "unetplusplus": (MASKS, SEGMENTATION, {"decoder": "UnetPlusPlus"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10, help="half a pass locked and a whole one")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", default="runs/bench_heads")
    options = parser.parse_args()
    write_shards()
    rows = [row(name, options.cycles, Path(options.out)) for name in options.only]
    titles = ["head", "task", "steps", "s a step", "metric", "student", "teacher"]
    print(tabulate(rows, titles, tablefmt="github", disable_numparse=True))


def write_shards() -> None:
    missing = [
        str(ROOT / "configs" / "datasets" / f"{name}.yaml")
        for name in ("nih14", "wingspan", "covid_cxr")
        if not (Path("data/shards") / name / "_info.json").is_file()
    ]
    if missing:
        ark("shards", "write", *missing)


def row(name: str, cycles: int, out: Path) -> list[str]:
    task, class_path, init_args = CASES[name]
    heads = {task: {"class_path": class_path, "init_args": init_args}}
    ark(
        "fit",
        f"--config={RECIPE}",
        f"--data.only=[{task}]",
        f"--data.heads={json.dumps(heads)}",
        f"--cycle.cycles={cycles}",
        f"--run.root={out}",
        f"--run.name={name}",
        f"--run.validate_every={cycles}",
        "--run.overwrite=true",
        "--run.wandb=off",
        "--run.baseline=false",
    )
    folder = out / name
    steps, seconds = re.findall(r"(\d+) optimiser steps.* (\d+) s in", read(folder / "report.md"))[
        0
    ]
    results = json.loads(read(folder / "results.json"))
    intervals = json.loads(read(folder / "intervals.json"))
    metric = "map50" if task == BOXES else "dice"
    cells = [
        f"{results[who][task][metric]:.3f} ({low:.3f} to {high:.3f})"
        for who in ("student", "teacher")
        for low, high in [intervals[who][task][metric]]
    ]
    return [name, task, steps, f"{int(seconds) / int(steps):.2f}", metric, *cells]


def ark(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "ark", *args], check=True)


def read(path: Path) -> str:
    return path.read_text()


if __name__ == "__main__":
    main()
