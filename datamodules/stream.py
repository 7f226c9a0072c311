"""Batches by number: a loader's worker is told a step and builds that step's whole batch.

Because a batch is a pure function of its number, the workers need no state, prefetch across the
boundary of two phases, and serve all datasets with one pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from ark.cycle import Cycle
from ark.seeds import seed_at, seed_of
from ark.types import Batch, ConfigError
from datamodules.collate import BatchBuilder
from datamodules.order import Order, rank_positions, rank_share
from datamodules.prefetch import AHEAD, Prefetcher
from datamodules.tars.shards import BadSample, Sample
from datamodules.task_data import TaskData, read
from datamodules.transforms import Augment, Transform

OnBad = Literal["error", "skip"]
CLASSIFICATION = ("multilabel", "multiclass", "ordinal")  # kinds that ten crops can be asked of
_MOST_DRAWS = 100  # in search of a sample to take a bad one's place


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process reads."""

    batch_size: int  # samples of one optimiser step, over all ranks and accumulated batches
    rank: int = 0
    world: int = 1
    accumulate: int = 1


@dataclass(frozen=True)
class Failed:
    """What a worker sends in place of a batch that it could not build, to be raised outside.

    torch wraps an exception that leaves a worker in the worker's whole traceback.
    """

    message: str


class TrainBatches(Dataset[Batch | Failed]):
    """Item m is micro-batch m of this rank: a pure function of the plan, the seed and m.

    Args:
        augment: how views vary: of all tasks, or by task key.
    """

    def __init__(
        self,
        cycle: Cycle,
        tasks: dict[str, TaskData],
        share: Share,
        seed: int,
        image_size: int,
        augment: Augment | Mapping[str, Augment],
        on_bad: OnBad = "error",
    ) -> None:
        self.cycle, self.tasks, self.share, self.seed = cycle, tasks, share, seed
        self.on_bad, self.prefetcher = on_bad, Prefetcher()
        self.orders = {
            key: Order(data.lengths, seed, key, share.batch_size) for key, data in tasks.items()
        }
        self.seeds = {key: seed_of("augment", seed, key) for key in tasks}
        views = dict.fromkeys(tasks, augment) if isinstance(augment, Augment) else augment
        self.transforms = {
            key: Transform(data.spec.kind, image_size, views[key]) for key, data in tasks.items()
        }

    def __len__(self) -> int:
        return self.cycle.total_steps * self.share.accumulate

    def __getitem__(self, item: int) -> Batch | Failed:
        self._prefetch(item)
        try:
            first, *others = [self._batch(*place) for place in self.at(item)]
        except ConfigError as error:
            return Failed(str(error))
        return replace(first, others=others)

    def _batch(self, key: str, positions: range) -> Batch:
        shards, ordinals = self.orders[key].locate(positions)
        data = self.tasks[key]
        builder = BatchBuilder(self.transforms[key], len(positions), data.uncertain)
        # all are read before one is decoded: each stage's code stays in the processor's cache
        found = [read(data, *place) for place in zip(shards, ordinals, strict=True)]
        for position, sample in zip(positions, found, strict=True):
            self._add(builder, key, position, sample)
        return builder.batch(key, list(positions))

    def at(self, item: int) -> list[tuple[str, range]]:
        """The tasks of micro-batch `item`, each with this rank's positions in its stream."""
        step, micro = divmod(item, self.share.accumulate)
        at = self.cycle.at(step)
        share = self.share
        return [
            (
                task,
                rank_positions(
                    task_step,
                    micro,
                    share.rank,
                    batch_size=share.batch_size,
                    accumulate=share.accumulate,
                    world=share.world,
                ),
            )
            for task, task_step in zip(at.phase.members, at.task_steps, strict=True)
        ]

    def _prefetch(self, item: int) -> None:
        for later in (item, item + AHEAD):
            for key, positions in self.at(min(later, len(self) - 1)):
                if (data := self.tasks[key]).reader.remote:
                    shards = np.unique(self.orders[key].locate(positions)[0])
                    self.prefetcher.want(data.reader, data.split, shards.tolist())

    def _add(
        self, builder: BatchBuilder, key: str, position: int, sample: Sample | BadSample
    ) -> None:
        """Adds the sample of `position`, or one drawn in its place; the seed is the position's."""
        data, seed = self.tasks[key], seed_at(self.seeds[key], position)
        for draw in range(_MOST_DRAWS):
            try:
                builder.add(sample, data.reader, seed)
                return
            except BadSample as error:
                if self.on_bad == "error":
                    raise
                if draw == 0:  # a bad substitute is not counted: its own position will be
                    builder.skip(position, error)
            substitute = seed_of("substitute", self.seed, key, position, draw) % data.size
            (shard,), (ordinal,) = self.orders[key].locate(range(substitute, substitute + 1))
            sample = read(data, shard, ordinal)
        raise ConfigError(
            f"task {key}: {_MOST_DRAWS} samples in a row could not be used; the last: "
            f"{builder.skipped[-1].message}"
        )


class PlainBatches(Dataset[Batch | Failed]):
    """Batches without augmentation.

    Args:
        plan: of each batch, its task and its samples by number.
        ten_crop: R / C of images of classification tasks, which come R x R; 0: as all others.
    """

    def __init__(
        self,
        plan: list[tuple[TaskData, Sequence[int]]],
        image_size: int,
        on_bad: OnBad,
        ten_crop: float = 0,
    ) -> None:
        self.plan, self.on_bad, self.prefetcher = plan, on_bad, Prefetcher()
        specs = {data.spec.key: data.spec for data, _ in plan}
        large = round(image_size * ten_crop) if ten_crop else image_size
        sides = {k: large if s.kind in CLASSIFICATION else image_size for k, s in specs.items()}
        self.transforms = {k: Transform(s.kind, sides[k], None) for k, s in specs.items()}

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> Batch | Failed:
        data, numbers = self.plan[item]
        for later, some in (self.plan[item], self.plan[min(item + AHEAD, len(self) - 1)]):
            if later.reader.remote:
                shards = {shard for shard, _ in later.locate(some)}
                self.prefetcher.want(later.reader, later.split, shards)
        builder = BatchBuilder(self.transforms[data.spec.key], len(numbers))
        found = [read(data, *place) for place in data.locate(numbers)]
        for number, sample in zip(numbers, found, strict=True):
            try:
                builder.add(sample, data.reader, 0)
            except BadSample as error:
                if self.on_bad == "error":
                    return Failed(str(error))
                builder.skip(number, error)
        return builder.batch(data.spec.key, list(numbers))


class EvalBatches(PlainBatches):
    """Every sample of every task of one split exactly once, over all ranks, without padding."""

    def __init__(
        self,
        tasks: Sequence[TaskData],
        batch_size: int,
        image_size: int,
        rank: int = 0,
        world: int = 1,
        on_bad: OnBad = "error",
        ten_crop: float = 0,
    ) -> None:
        plan = [
            (data, numbers)
            for data in tasks
            for numbers in _cut(rank_share(data.size, rank, world), batch_size)
        ]
        # Lightning skips the whole evaluation on a rank without a batch, and the others wait for it
        super().__init__(plan or [(tasks[0], range(0))], image_size, on_bad, ten_crop)


class FirstBatches(PlainBatches):
    """The first samples of a task that training will see.

    Args:
        order: of the task's stream.
        count: samples; all of the task's where it has fewer.
    """

    def __init__(
        self,
        data: TaskData,
        order: Order,
        count: int,
        batch_size: int,
        image_size: int,
        on_bad: OnBad = "error",
    ) -> None:
        first = range(min(count, data.size))  # of the first pass: no sample comes twice
        numbers = data.numbers(*order.locate(first))
        super().__init__([(data, some) for some in _cut(numbers, batch_size)], image_size, on_bad)


def _cut(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
