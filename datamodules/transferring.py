"""`ark zeroshot`: the heads of a checkpoint score datasets that they were not trained on."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from tabulate import tabulate
from tqdm import tqdm

from ark.checkpoint import load_network
from ark.ontology import Ontology
from ark.types import ConfigError, TaskSpec
from ark.zeroshot import Pair, ZeroShot
from datamodules.config import load_datasets, prepare, task_specs
from datamodules.loader import BatchLoader
from datamodules.stream import EvalBatches, TaskData
from datamodules.tars.shards import ShardReader

log = logging.getLogger("ark")
TITLES = ("head", "its classes", "task", "class", "metric", "value", "low", "high")


def zeroshot(
    checkpoint: str,
    datasets: list[str] | None = None,
    ontology: str = "",
    output: str = "zeroshot.csv",
    split: Literal["train", "val", "test"] = "test",
    which: Literal["teacher", "student"] = "teacher",
    bootstraps: int = 1000,
    batch_size: int = 32,
    workers: int = 2,
) -> None:
    """Prints and writes a row for each class of the datasets that a head of the checkpoint knows.

    Args:
        checkpoint: folder of a run, its model/ folder, or a file in its checkpoints/.
        datasets: YAML files of the datasets to be scored.
        ontology: YAML that says which classes mean the same, and which imply which.
        output: CSV file to write.
        split: of the datasets.
        which: the network of the two.
        bootstraps: draws of patients for the 95 % intervals; 0 leaves them out.
        batch_size: images at once.
        workers: processes that decode.

    Raises:
        ConfigError: no datasets, no ontology, or it joins no class of a head to one of the data.
    """
    if not datasets or not ontology:
        raise ConfigError(
            "ark zeroshot: expected --datasets=[configs/datasets/NAME.yaml] and "
            "--ontology=configs/ontologies/NAME.yaml"
        )
    network = load_network(checkpoint, which)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    tasks = [data for path in datasets for data in _tasks(path, split)]
    known = Ontology.load(ontology)
    scores = ZeroShot(network, [task.spec for task in tasks], known)
    if not scores.pairs:
        raise ConfigError(
            f"ontology {ontology}: joins no class of {list(network.tasks)} to a class of "
            f"{[task.spec.key for task in tasks]}; add synonyms or parents, or take another "
            "dataset: a head is not scored on its own task"
        )
    Path(output).parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    wanted = {pair.target for pair in scores.pairs}
    chosen = [task for task in tasks if task.spec.key in wanted]
    batches = EvalBatches(chosen, batch_size, network.backbone.image_size)
    for batch in tqdm(BatchLoader(batches, workers, shuffle=False), "zero-shot", unit="batch"):
        scores.update(batch.to(device))
    rows = [_row(pair, value, *interval) for pair, value, interval in scores.scores(bootstraps)]
    with Path(output).open("w", newline="") as file:
        csv.writer(file).writerows([TITLES, *rows])
    log.info("\n%s\n\n%d rows -> %s", _table(rows), len(rows), output)


def _tasks(path: str, split: str) -> list[TaskData]:
    (dataset,) = load_datasets(path)
    index = prepare(dataset)
    reader = ShardReader(index, dataset.window)
    specs: list[TaskSpec] = task_specs(dataset, index, split)
    return [TaskData(spec, reader, split) for spec in specs]


def _row(pair: Pair, value: float, low: float, high: float) -> list[Any]:
    sources = " | ".join(pair.sources)
    return [pair.head, sources, pair.target, pair.name, pair.metric, value, low, high]


def _table(rows: list[list[Any]]) -> str:
    shown = [
        [*row[:5], *("" if math.isnan(number) else f"{number:.3f}" for number in row[5:])]
        for row in rows
    ]
    return tabulate(shown, TITLES, tablefmt="github", disable_numparse=True)
