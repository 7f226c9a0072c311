"""The loaders: one pool of workers for all datasets, told which batches to build."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from ark.signals import outlive_signals
from ark.types import ConfigError
from datamodules.stream import Failed, PlainBatches, TrainBatches


class FromStep(Sampler[int]):
    """Batch numbers from wherever training stands: resuming needs no more than this."""

    def __init__(self, start: Callable[[], int], total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start(), self.total))

    def __len__(self) -> int:
        return self.total


class BatchLoader(DataLoader[Any]):
    """A DataLoader whose items are whole batches, put together where they were decoded."""

    def __init__(self, batches: TrainBatches | PlainBatches, workers: int, **options: Any) -> None:
        super().__init__(
            batches,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=quiet_worker,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, Failed):
                raise ConfigError(item.message)
            yield item


class StepLoader(BatchLoader):
    """Tells Lightning that it can resume in the middle; the state is the step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: `FromStep` asks the trainer where it stands."""


def quiet_worker(_: int) -> None:
    """One thread a worker: OpenCV's and torch's pools would fight the trainer's. And no signal that
    is meant for the trainer ends it."""
    outlive_signals()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    gc.freeze()  # what the trainer made is no garbage of ours: not to be searched, nor copied
