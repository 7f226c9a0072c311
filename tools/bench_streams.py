#!/usr/bin/env python
"""How fast samples stream, beside what others do with the same data on the same machine.

    python tools/bench_streams.py [--samples 256] [--rounds 3] [--folder /tmp/ark-bench]

Prints, for 224 px from 512 px JPEG and for 512 px from 1024 px JPEG and PNG:
  limit       decode + resize of the same bytes, already in memory, in a bare loop
  ark         the whole training pipeline without augmentation: order, shards, decode, batch
  webdataset  its usual pipeline: shuffle, decode("pil"), torchvision transforms, batched
  files       one file a sample, PIL, torchvision transforms, DataLoader: as research code does it
then where the time goes with augmentation, and what a change of dataset costs.

Rounds of all contestants alternate and the best of each counts; compare ratios, and within one run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import torchvision.transforms as T
import webdataset as wds
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ark import memory
from ark.cycle import Cycle, Phase
from ark.types import TaskSpec
from datamodules.annotations import AnnotationSpec
from datamodules.imaging.images import decode_image, encode_jpeg, encode_png
from datamodules.loader import FromStep, StepLoader
from datamodules.phantoms import PhantomSource
from datamodules.sources.base import Source, SourceSample
from datamodules.stream import Share, TaskData, TrainBatches
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import ShardReader
from datamodules.tars.writing import write_shards
from datamodules.transforms import Augment, Transform

BATCH = 32
PASSES = 4  # of contestants with workers, so that starting those is not what is measured
STILL = Augment(rotate=0, shift=0, scale=0, brightness=0, gamma=0, flip=0)


@dataclass
class Setting:
    """One size and format, with the files and shards made for it."""

    title: str
    size: int  # of the view, pixels
    folder: Path
    index: ShardIndex
    files: list[Path]


class Enlarged(Source):
    """Phantoms of 256 px, enlarged and with the noise of a larger detector: quicker than drawn."""

    def __init__(self, side: int, count: int, png: bool) -> None:
        drawn = PhantomSource("findings", train=count, val=1, test=1, size=256)
        self.specs = drawn.annotations()
        encode = encode_png if png else encode_jpeg
        noise = np.random.default_rng(0).normal(0, 2, (side, side)).astype(np.float32)
        self.made = {split: [] for split in drawn.splits()}
        for split, made in self.made.items():
            for sample in drawn.samples(split):
                small = decode_image(sample.image, sample.key)[..., 0].astype(np.float32)
                large = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC) + noise
                image = encode(large.clip(0, 255).astype(np.uint8))
                made.append(SourceSample(sample.key, image, (side, side), sample.annotations))

    def annotations(self) -> dict[str, AnnotationSpec]:
        return self.specs

    def splits(self) -> dict[str, int]:
        return {split: len(made) for split, made in self.made.items()}

    def samples(self, split: str) -> Iterator[SourceSample]:
        return iter(self.made[split])


def make(folder: Path, title: str, stored: int, size: int, samples: int, png: bool) -> Setting:
    """Writes the same images as shards and as files."""
    source = Enlarged(stored, samples, png)
    home = folder / title.replace(" ", "_")
    # about 8 shards: as many as a small public dataset has
    limit = sum(len(sample.image) for sample in source.samples("train")) // 8
    index = write_shards(source, "bench", home / "shards", max_shard_bytes=limit, overwrite=True)
    (home / "files").mkdir(exist_ok=True)
    files = []
    for sample in source.samples("train"):
        files.append(home / "files" / f"{sample.key}.{'png' if png else 'jpg'}")
        files[-1].write_bytes(sample.image)
    return Setting(title, size, home, index, files)


# -- contestants: each yields the number of samples of a batch, for one pass -----------------


def limit(setting: Setting) -> Callable[[], Iterator[int]]:
    contents, size = [path.read_bytes() for path in setting.files], setting.size
    out = np.empty((size, size), np.uint8)
    png = setting.files[0].suffix == ".png"

    def loop() -> Iterator[int]:
        for data in contents:
            if png:
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            else:
                pixels = simplejpeg.decode_jpeg(
                    data, "GRAY", min_height=size, min_width=size, min_factor=2
                )
            if pixels.shape[0] != size:
                area = pixels.shape[0] >= 2 * size
                method = cv2.INTER_AREA if area else cv2.INTER_LINEAR
                cv2.resize(pixels, (size, size), dst=out, interpolation=method)
            yield 1

    return loop


def task_data(index: ShardIndex) -> TaskData:
    spec = TaskSpec("bench", "findings", "multilabel", index.annotations["findings"].classes)
    return TaskData(spec, ShardReader(index), "train")


def ark(setting: Setting, workers: int, augment: Augment = STILL) -> Callable[[], Iterator[int]]:
    data = task_data(setting.index)
    steps = data.size // BATCH * (PASSES if workers else 1)

    def loop() -> Iterator[int]:
        cycle = Cycle([Phase(data.spec.key, steps=steps)], [steps], 1)
        share = Share(BATCH)
        batches = TrainBatches(cycle, {data.spec.key: data}, share, 0, setting.size, augment)
        for batch in StepLoader(batches, workers, sampler=FromStep(lambda: 0, steps)):
            yield len(batch.keys)

    return loop


def usual_transform(size: int) -> Any:
    return T.Compose([T.Resize((size, size)), T.ToTensor()])


def webdataset(setting: Setting, workers: int) -> Callable[[], Iterator[int]]:
    shards = [str(path) for path in sorted((setting.folder / "shards").glob("train-*.tar"))]
    transform = usual_transform(setting.size)

    def pick(sample: Any) -> Any:
        return transform(sample[0].convert("RGB")), sample[1]["annotations"]["findings"]

    def loop() -> Iterator[int]:
        dataset = (
            wds.WebDataset(shards, shardshuffle=100, empty_check=False)
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg;png", "json")
            .map(pick)
            .batched(BATCH, collation_fn=list)
        )
        if workers:
            dataset = dataset.repeat(PASSES)
        for batch in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
            yield len(batch)

    return loop


class Files(Dataset[Any]):
    """What research code does: open, convert, transform."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.transform = paths, usual_transform(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), torch.zeros(3)


def files(setting: Setting, workers: int) -> Callable[[], Iterator[int]]:
    def loop() -> Iterator[int]:
        dataset = Files(setting.files, setting.size)
        drawn = RandomSampler(dataset, num_samples=len(dataset) * (PASSES if workers else 1))
        for images, _ in DataLoader(dataset, BATCH, sampler=drawn, num_workers=workers):
            yield len(images)

    return loop


# -- measuring -------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    mine, theirs = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def measure(loop: Callable[[], Iterator[int]]) -> tuple[float, float]:
    """Samples a second and samples a CPU-second."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    count = sum(loop())
    return count / (time.perf_counter() - wall), count / (cpu_seconds() - cpu)


def compare(setting: Setting, rounds: int) -> None:
    contestants = {"limit: bare decode + resize": limit(setting)}
    for name, make_one in (("ark", ark), ("webdataset", webdataset), ("files + PIL", files)):
        for workers in (0, 1, 2):
            contestants[f"{name}, {workers} workers"] = make_one(setting, workers)
    best: dict[str, tuple[float, float]] = {}
    for name in [name for _ in range(rounds) for name in contestants]:
        found, before = measure(contestants[name]), best.get(name, (0.0, 0.0))
        best[name] = max(found[0], before[0]), max(found[1], before[1])
    base, research = next(iter(best.values())), best["files + PIL, 0 workers"]
    rows = [
        [n, f"{wall:.0f}", f"{cpu:.0f}", f"{cpu / base[1]:.2f}", f"{cpu / research[1]:.2f}"]
        for n, (wall, cpu) in best.items()
    ]
    columns = ["", "images/s", "images/CPU-s", "of the limit", "times files + PIL"]
    kilobytes = sum(path.stat().st_size for path in setting.files) / len(setting.files) / 1e3
    print(f"\n{setting.title}: {len(setting.files)} images of {kilobytes:.0f} kB\n")
    print(tabulate(rows, columns, tablefmt="github", disable_numparse=True))


def where_time_goes(setting: Setting) -> None:
    """Microseconds a sample of each stage with the default augmentation, one after another."""
    data, size = task_data(setting.index), setting.size
    still, moving = (Transform("multilabel", size, augment) for augment in (STILL, Augment()))
    geometry = Transform("multilabel", size, Augment(brightness=0, gamma=0))
    places = [(s, n) for s, length in enumerate(data.lengths) for n in range(length)]
    samples = [data.read(*place) for place in places]
    images = [data.reader.decode(sample, size) for sample in samples]

    def view(transform: Transform) -> Callable[[int], object]:
        return lambda i: transform(images[i], samples[i].annotation, i, samples[i].size)

    stages: dict[str, Callable[[int], object]] = {
        "read: order, tar, checksum, json, labels": lambda i: data.read(*places[i]),
        "decode": lambda i: data.reader.decode(samples[i], size),
        "resize": view(still),
        "resize + geometry": view(geometry),
        "resize + geometry + brightness, gamma": view(moving),
    }
    found = {}
    for name, stage in stages.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for i in range(len(samples)):
                stage(i)
            times.append((time.perf_counter() - start) / len(samples) * 1e6)
        found[name] = min(times)
    _, whole = max(measure(ark(setting, 0, Augment())) for _ in range(3))
    found["the whole, in batches (CPU)"] = 1e6 / whole
    print(f"\nwhere the time goes with augmentation, {setting.title}:\n")
    print(tabulate(found.items(), ["stage", "us a sample"], tablefmt="github", floatfmt=".0f"))


def bubble(settings: list[Setting], step_seconds: float) -> None:
    """Waiting for a batch inside a phase and where the dataset changes, one worker."""
    tasks = {}
    for number, setting in enumerate(settings):
        data = task_data(setting.index)
        data.spec = TaskSpec(f"bench{number}", "findings", "multilabel", data.spec.classes)
        tasks[data.spec.key] = data
    length = 8
    phases = [Phase(key, steps=length) for key in tasks]
    cycle = Cycle(phases, [length] * len(phases), 6)
    batches = TrainBatches(cycle, tasks, Share(BATCH), 0, 224, Augment())
    loader = StepLoader(batches, 1, sampler=FromStep(lambda: 0, len(batches)))
    waits: dict[bool, list[float]] = {True: [], False: []}
    items = iter(loader)
    for step in itertools.count():
        start = time.perf_counter()
        if next(items, None) is None:
            break
        if step >= length:  # the first phase fills the pipe
            waits[step % length == 0].append(time.perf_counter() - start)
        time.sleep(step_seconds)
    rows = [
        [name, len(w), np.median(w) * 1e3, max(w) * 1e3]
        for name, w in (("inside a phase", waits[False]), ("dataset changes", waits[True]))
    ]
    print(f"\nwaiting for the next batch, 1 worker, steps of {step_seconds * 1e3:.0f} ms:\n")
    columns = ["", "steps", "median ms", "longest ms"]
    print(tabulate(rows, columns, tablefmt="github", floatfmt=".2f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=256, help="images of each setting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ark-bench"))
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    memory.settle()  # for all contestants
    print(f"{os.cpu_count()} cores; python {sys.version.split()[0]}, torch {torch.__version__}")
    shapes = (
        ("224 from 512 px JPEG", 512, 224, options.samples, False),
        ("512 from 1024 px JPEG", 1024, 512, options.samples // 2, False),
        ("512 from 1024 px PNG", 1024, 512, options.samples // 2, True),
    )
    settings = [make(options.folder, *shape) for shape in shapes]
    for setting in settings:
        compare(setting, options.rounds)
    for setting in settings:
        where_time_goes(setting)
    bubble(settings[:2], 0.15)
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
