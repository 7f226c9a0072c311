"""The LightningDataModule: asks the cycle which dataset each step needs."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from ark.checkpoint import check_same
from ark.cycle import Cycle
from ark.ledger import Ledger
from ark.planning import CycleConfig, keep_tasks, make_cycle
from ark.tracking.facts import DatasetVersion
from ark.types import Batch, ConfigError, TaskSpec
from datamodules.augment import Augment, AugmentChange, check_teacher_view, choose_augments
from datamodules.config import DatasetConfig, prepare, task_specs
from datamodules.loader import BatchLoader, FromStep, StepLoader
from datamodules.order import Order
from datamodules.recipe_heads import choose_heads, choose_metrics
from datamodules.shots import choose_shots, draw_shots
from datamodules.sources.base import SPLITS
from datamodules.stream import EvalBatches, FirstBatches, OnBad, Share, TrainBatches
from datamodules.tars.index import INFO_FILE
from datamodules.tars.shards import ShardReader
from datamodules.tars.storage import CacheConfig
from datamodules.task_data import TaskData
from datamodules.uncertain import Uncertain


class Mixture(pl.LightningDataModule):
    """Streams of all datasets, one task a step, in the order of the cycle.

    Args:
        datasets: what to train on; a recipe lists the datasets' YAML files.
        cycle: the phases; see `ark.planning.CycleConfig`.
        only: task keys to keep; all if empty. Phases of other tasks are dropped.
        batch_size: samples of one optimiser step, over all ranks and accumulated batches.
        eval_batch_size: samples of one evaluation batch on one rank.
        image_size: side of the square view in pixels.
        workers: loader processes of each rank.
        seed: of the order of samples and of their augmentation.
        augment: how strongly training views vary.
        augments: {task kind or task key: {field: value}}: where they vary otherwise than `augment`
            says; a task's own goes before its kind's.
        ten_crop: R / C, such as 1.143 for 256/224: the test split's images of classification tasks
            are resized to R x R, and the probability is the mean over ten crops of C x C (see
            `ark.crops`); 0: the whole image, once. Every test takes ten times as long.
        on_bad: what a damaged sample does: "error" stops the run and names shard, key and field;
            "skip" puts another sample in its place, counts it in the ledger and goes on.
        max_bad: with "skip": the share of a task's samples above which a run stops all the same.
        cache: where shards of URLs are kept, and how many gigabytes of them.
        heads: {task kind or task key: {class_path, init_args}}, in place of what the datasets'
            YAMLs say; a task's own goes before its kind's.
        metrics: {task kind or task key: metric}: the main one of tables, best checkpoints and
            comparisons, in place of the dataset's or the head's.
        shots: {task kind or task key: how many training samples it trains on (24) or which share
            of them (0.1)}, drawn by `seed`; all if not named. Validation and test stay whole.
    """

    def __init__(
        self,
        datasets: list[DatasetConfig],
        cycle: CycleConfig,
        only: list[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        image_size: int = 224,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = Augment(),  # noqa: B008 - frozen
        augments: dict[str, AugmentChange] | None = None,
        ten_crop: float = 0.0,
        on_bad: OnBad = "error",
        max_bad: float = 0.01,
        cache: CacheConfig = CacheConfig(),  # noqa: B008 - frozen
        heads: dict[str, dict[str, Any]] | None = None,
        metrics: dict[str, str] | None = None,
        shots: dict[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("image_size", image_size),
        ):
            if value < 1:
                raise ConfigError(f"data.{name}: {value}; expected at least 1")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        if ten_crop and not 1 < ten_crop <= 8:
            raise ConfigError(
                f"data.ten_crop: {ten_crop}; expected R / C in (1, 8], such as 1.143 for 256/224, "
                "or 0 for the whole image"
            )
        self.image_size, self.workers, self.seed = image_size, workers, seed
        self.ten_crop = ten_crop
        self.timeout = 0.0  # of the loaders: run.timeout
        self.on_bad, self.max_bad, self.cache = on_bad, max_bad, cache
        self._readers: dict[str, ShardReader] = {}
        self._specs: dict[str, TaskSpec] = {}
        self._uncertain: dict[str, Uncertain | None] = {}
        for dataset in datasets:
            self._add(dataset)
        self._specs = choose_metrics(choose_heads(self._specs, heads or {}), metrics or {})
        self.shots = choose_shots(self._specs, shots or {})
        views = choose_augments(self._specs, augment, augments or {})
        self._keep(only or [], cycle)
        self.augments = {key: views[key] for key in self._specs}
        for key, spec in self._specs.items():
            check_teacher_view(spec, views[key])

    def _add(self, dataset: DatasetConfig) -> None:
        if dataset.name in self._readers:
            raise ConfigError(f"datasets: {dataset.name!r} is listed twice; give each its own name")
        index = prepare(dataset, self.cache)
        if self.on_bad == "error":
            index.check_files()
        self._readers[dataset.name] = ShardReader(index, dataset.window)
        for task, spec in zip(dataset.tasks, task_specs(dataset, index), strict=True):
            self._specs[spec.key] = spec
            self._uncertain[spec.key] = Uncertain.checked(task.uncertain, spec)

    def _keep(self, only: list[str], cycle: CycleConfig) -> None:
        if not self._specs:
            raise ConfigError(
                "datasets: none is listed; --datasets+=configs/datasets/NAME.yaml adds one"
            )
        if unknown := [key for key in only if key not in self._specs]:
            raise ConfigError(f"only: unknown task {unknown[0]!r}; tasks: {list(self._specs)}")
        if only:
            self._specs = {key: self._specs[key] for key in self._specs if key in only}
            cycle = keep_tasks(cycle, only)
        self._cycle_config = cycle
        for key in self._specs:
            for split in SPLITS:
                if not self.data(key, split).size:
                    raise ConfigError(
                        f"task {key}: no sample of split {split!r} is annotated for it; annotate "
                        "some, or remove the task"
                    )

    @property
    def tasks(self) -> list[TaskSpec]:
        """All tasks of the run, in the order of the datasets."""
        return list(self._specs.values())

    @cached_property
    def plan(self) -> Cycle:
        """The plan, now that the number of samples is known."""
        samples = {key: self.data(key, "train").size for key in self._specs}
        return make_cycle(self._cycle_config, self.tasks, samples, self.batch_size)

    def data(self, key: str, split: str) -> TaskData:
        """The samples of task `key` in `split`."""
        spec = self._specs[key]
        reader = self._readers[spec.dataset]
        shots, drawn = self.shots.get(key), None
        if shots is not None and split == "train":
            lengths = reader.index.annotated(split, spec.name)
            drawn = draw_shots(lengths, shots, self.seed, key)
        return TaskData(spec, reader, split, self._uncertain[key], drawn)

    def samples(self, key: str, count: int) -> DataLoader[Batch]:
        """The first `count` training samples of task `key` that the run will see, or all where
        there are fewer; unaugmented, and the same on every rank."""
        data = self.data(key, "train")
        order = Order(data.lengths, self.seed, key, self.batch_size)
        batches = FirstBatches(
            data, order, count, self.eval_batch_size, self.image_size, self.on_bad
        )
        return BatchLoader(batches, self.workers, self.timeout, shuffle=False)

    def ledger(self, folder: Path | None) -> Ledger:
        """The callback that proves that each sample came as often as planned.

        Args:
            folder: where it writes; None writes nothing.
        """
        samples = {
            split: {key: self.data(key, split).size for key in self._specs} for split in SPLITS
        }
        return Ledger(samples, self.batch_size, self.max_bad, folder)

    def versions(self) -> dict[str, DatasetVersion]:
        """Which data the run sees, by dataset."""
        used = {spec.dataset for spec in self._specs.values()}
        return {
            name: DatasetVersion(
                f"{reader.index.storage.where}/{INFO_FILE}",
                sha256(reader.index.as_json().encode()).hexdigest(),
                {split: reader.index.num_samples(split) for split in reader.index.splits},
            )
            for name, reader in self._readers.items()
            if name in used
        }

    def describe(self) -> str:
        """Samples of every task by split, a line each."""
        lines = [f"data: {len(self._specs)} tasks; {self.batch_size} samples a step"]
        for key, spec in self._specs.items():
            counts = [f"{self.data(key, split).size} {split}" for split in SPLITS]
            if key in self.shots:
                counts[0] += f" (drawn: shots {self.shots[key]})"
            lines.append(
                f"  {key}: {spec.kind} of {len(spec.classes)} classes, {', '.join(counts)}"
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """What decides which samples a step sees; the step itself decides the rest."""
        return {
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "samples": {key: self.data(key, "train").size for key in self._specs},
            "uncertain": {k: u.policies for k in self._specs if (u := self._uncertain[k])},
            **{f"augment of {key}": asdict(views) for key, views in self.augments.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore, but a resumed run must see the samples of the one it goes on with.

        Raises:
            ConfigError: names what differs.
        """
        if self._trainer().state.fn == "fit":
            check_same(state_dict, self.state_dict())

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self._trainer()
        share = Share(
            self.batch_size,
            trainer.global_rank,
            trainer.world_size,
            trainer.accumulate_grad_batches,
        )
        if self.batch_size % (share.world * share.accumulate):
            raise ConfigError(
                f"data.batch_size: {self.batch_size} samples a step do not split over "
                f"{share.world} ranks x {share.accumulate} accumulated batches; choose a multiple"
            )
        data = {key: self.data(key, "train") for key in self._specs}
        batches = TrainBatches(
            self.plan, data, share, self.seed, self.image_size, self.augments, self.on_bad
        )
        start = FromStep(lambda: trainer.global_step * share.accumulate, len(batches))
        return StepLoader(batches, self.workers, self.timeout, sampler=start)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_dataloader("test")

    def _eval_dataloader(self, split: str) -> DataLoader[Batch]:
        trainer = self._trainer()
        tasks = [self.data(key, split) for key in self._specs]
        batches = EvalBatches(
            tasks,
            self.eval_batch_size,
            self.image_size,
            trainer.global_rank,
            trainer.world_size,
            self.on_bad,
            self.ten_crop if split == "test" else 0,
        )
        return BatchLoader(batches, self.workers, self.timeout, shuffle=False)

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("Mixture makes its loaders for a trainer; call trainer.fit or test")
        return self.trainer
