"""From nothing to a published model's first prediction, against timm.create_model alone.

    python tools/bench_load.py MODEL [--repeats 5]

MODEL is a folder of `ark export`. Each row is a process of its own; medians of seconds. The rows
that import Ark do what the one of timm does, and more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, time
began = time.perf_counter()
{imports}
imported = time.perf_counter()
{load}
loaded = time.perf_counter()
{run}
print(json.dumps([imported - began, loaded - imported, time.perf_counter() - loaded]))
"""
ROWS = {  # imports, load, run
    "torch": ("import torch", "", ""),
    "timm.create_model": (
        "import timm, torch",
        "model = timm.create_model({name!r}, num_classes=0).eval()",
        "with torch.no_grad(): model(torch.rand(1, 3, {side}, {side}))",
    ),
    "ark.load, features": (
        "import ark, torch",
        "model = ark.load({folder!r})",
        "with torch.no_grad(): model.features(torch.rand(1, 3, {side}, {side}))",
    ),
    "ark.load, all heads": (
        "import ark, torch",
        "model = ark.load({folder!r})",
        "model(torch.rand(1, 3, {side}, {side}))",
    ),
}


def seconds(row: str, **facts: object) -> list[float]:
    imports, load, run = (part.format(**facts) for part in ROWS[row])
    program = PROGRAM.format(imports=imports, load=load, run=run)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    folder = str(Path(options.model).resolve())
    backbone = json.loads((Path(folder) / "config.json").read_text())["ark"]["architecture"][
        "backbone"
    ]
    facts = {"folder": folder, "name": backbone["name"], "side": backbone["image_size"]}
    found: dict[str, list[list[float]]] = {row: [] for row in ROWS}
    for _ in range(options.repeats + 1):  # the first reads files from the disk
        for row, times in found.items():
            times.append(seconds(row, **facts))
    table = []
    for row, times in found.items():
        medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
        table.append([row, *medians, sum(medians)])
    base = table[1][-1]
    rows = [[*row, row[-1] / base] for row in table]
    titles = ["", "import", "load", "first run", "all, s", "of timm's"]
    print(tabulate(rows, titles, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
