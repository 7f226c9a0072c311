"""Batches by number: a loader's worker is told a step and builds that step's whole batch.

Because a batch is a pure function of its number, the workers need no state, prefetch across the
boundary of two phases, and serve all datasets with one pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ark.cycle import Cycle
from ark.seeds import seed_of
from ark.types import (
    Batch,
    DetectionTarget,
    Kind,
    MulticlassTarget,
    MultilabelTarget,
    SegmentationTarget,
    Target,
    TaskSpec,
)
from datamodules.order import rank_positions, sample_at
from datamodules.shards import ShardReader
from datamodules.transforms import Augment, Transform, View


@dataclass
class TaskData:
    """One task's samples in one split."""

    spec: TaskSpec
    reader: ShardReader
    split: str
    numbers: np.ndarray  # (n,) sample numbers in the split that carry this task's annotation


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process reads."""

    batch_size: int  # samples of one optimiser step, over all ranks and accumulated batches
    rank: int = 0
    world: int = 1
    accumulate: int = 1


class TrainBatches(Dataset[Batch]):
    """Item m is micro-batch m of this rank: a pure function of the plan, the seed and m."""

    def __init__(
        self,
        cycle: Cycle,
        tasks: dict[str, TaskData],
        share: Share,
        seed: int,
        image_size: int,
        augment: Augment,
    ) -> None:
        self.cycle, self.tasks, self.share, self.seed = cycle, tasks, share, seed
        self.transforms = {
            key: Transform(data.spec.kind, image_size, augment) for key, data in tasks.items()
        }

    def __len__(self) -> int:
        return self.cycle.total_steps * self.share.accumulate

    def __getitem__(self, item: int) -> Batch:
        step, micro = divmod(item, self.share.accumulate)
        at = self.cycle.at(step)
        positions = rank_positions(
            at.task_step,
            micro,
            self.share.rank,
            batch_size=self.share.batch_size,
            accumulate=self.share.accumulate,
            world=self.share.world,
        )
        data = self.tasks[at.phase.task]
        size, key = len(data.numbers), data.spec.key
        numbers = [data.numbers[sample_at(p, size, self.seed, key)] for p in positions]
        seeds = [seed_of("augment", self.seed, key, p) for p in positions]
        return load_batch(data, numbers, seeds, self.transforms[key])


class EvalBatches(Dataset[Batch]):
    """Every sample of every task of one split exactly once, over all ranks, without padding."""

    def __init__(
        self, tasks: Sequence[TaskData], batch_size: int, image_size: int, rank: int, world: int
    ) -> None:
        self.plan: list[tuple[TaskData, np.ndarray]] = []
        self.transforms = {t.spec.key: Transform(t.spec.kind, image_size, None) for t in tasks}
        for data in tasks:
            mine = data.numbers[rank::world]
            starts = range(0, len(mine), batch_size)
            self.plan += [(data, mine[start : start + batch_size]) for start in starts]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> Batch:
        data, numbers = self.plan[item]
        return load_batch(data, numbers, [0] * len(numbers), self.transforms[data.spec.key])


def load_batch(
    data: TaskData, numbers: Sequence[int] | np.ndarray, seeds: Sequence[int], transform: Transform
) -> Batch:
    """Reads, decodes, augments and stacks."""
    keys, views = [], []
    for number, seed in zip(numbers, seeds, strict=True):
        sample = data.reader.read(data.split, int(number), data.spec.name)
        keys.append(sample.key)
        views.append(transform(sample.image, sample.annotation, seed))
    return Batch(
        task=data.spec.key,
        keys=keys,
        images=torch.stack([view.student for view in views]),
        teacher_images=(
            torch.stack([view.teacher for view in views if view.teacher is not None])
            if transform.training
            else None
        ),
        target=COLLATE[data.spec.kind](views),
    )


def _multilabel(views: list[View]) -> Target:
    labels = torch.from_numpy(np.stack([view.annotation for view in views]))
    return MultilabelTarget(labels=labels.nan_to_num(0.0), known=~labels.isnan())


def _multiclass(views: list[View]) -> Target:
    return MulticlassTarget(labels=torch.tensor([int(view.annotation) for view in views]))


def _detection(views: list[View]) -> Target:
    return DetectionTarget(
        boxes=[torch.from_numpy(view.annotation[0]) for view in views],
        labels=[torch.from_numpy(view.annotation[1]) for view in views],
    )


def _segmentation(views: list[View]) -> Target:
    return SegmentationTarget(
        masks=torch.from_numpy(np.stack([view.annotation[0] for view in views])),
        known=torch.from_numpy(np.stack([view.annotation[1] for view in views])),
    )


COLLATE: dict[Kind, Callable[[list[View]], Target]] = {
    "multilabel": _multilabel,
    "multiclass": _multiclass,
    "detection": _detection,
    "segmentation": _segmentation,
}


class FromStep(Sampler[int]):
    """Batch numbers from wherever training stands: resuming needs no more than this."""

    def __init__(self, start: Callable[[], int], total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start(), self.total))

    def __len__(self) -> int:
        return self.total


class StepLoader(DataLoader[Batch]):
    """A DataLoader that tells Lightning it can resume in the middle; the state is the step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: `FromStep` asks the trainer where it stands."""


def quiet_worker(_: int) -> None:
    """One thread a worker: OpenCV's and torch's pools would fight the trainer's."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
