"""The ledger: what became of every sample that the plan asked for.

Training, by task: planned = seen + skipped. A skipped sample could not be used, and another one,
counted as repeated, took its place, so that planned is also what the network was fed. Evaluation,
by task and split: every sample of the split exactly once, seen or skipped, over all ranks.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tabulate import tabulate

from ark.accounts import Accounts
from ark.module import ArkModule
from ark.types import Batch, ConfigError, Skipped

log = logging.getLogger("ark")
LEDGER, SKIPPED = "ledger.csv", "skipped.csv"
_TOLD = 10  # skipped samples of a task that are said one by one; the file has them all


class Ledger(Callback):
    """Counts samples and raises where they do not add up: at each checkpoint, at the end of
    training, and after each evaluation.

    Args:
        samples: split -> task key -> number of samples.
        batch_size: samples of one optimiser step, over all ranks.
        max_bad: the share of a task's samples above which skipping stops the run.
        folder: for ledger.csv and skipped.csv; None writes neither.
    """

    def __init__(
        self,
        samples: Mapping[str, Mapping[str, int]],
        batch_size: int,
        max_bad: float = 1.0,
        folder: Path | None = None,
    ) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.max_bad, self.folder = max_bad, folder
        self.tasks = list(samples["train"])
        self._total = Accounts(self.tasks)  # of all ranks, up to the last checkpoint
        self._mine = Accounts(self.tasks)  # of this rank, since then
        self._step = Accounts(self.tasks)  # of this rank's unfinished step
        self._finished = 0  # steps whose samples are in `_mine` or `_total`
        self._evaluated = Accounts(self.tasks)
        self._bad: dict[tuple[str, str], set[str]] = {}  # (split, task) -> what is bad
        self._written = -1  # the step of the last rows in ledger.csv

    # -- training ---------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._step, self._finished = Accounts(self.tasks), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        for part in batch.parts:
            self._step.enter(part)
            self._note(part, "train", trainer.global_rank)
        # Lightning may save while gradients accumulate; that step is then done again, whole
        if trainer.global_step > self._finished:
            self._mine.add(self._step.as_tensor())
            self._step, self._finished = Accounts(self.tasks), trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.settle(trainer, module)
        bad = {task: sorted(self._bad.get(("train", task), ())) for task in self.tasks}
        numbers = dict(zip(self.tasks, self._total.numbers.tolist(), strict=True))
        checkpoint["ark_ledger"] = {"numbers": numbers, "bad": bad}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("ark_ledger")
        if saved is not None and trainer.state.fn == "fit":
            for row, task in zip(self._total.numbers, self.tasks, strict=True):
                row[:] = saved["numbers"][task]
            self._bad = {("train", task): set(bad) for task, bad in saved["bad"].items()}

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.settle(trainer, module)
        if trainer.is_global_zero:
            log.info("\n%s\n", self.describe(trainer, module))

    def settle(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Adds up all ranks and compares with the plan. Every rank must call it.

        Raises:
            RuntimeError: the numbers differ.
        """
        self._total.add(_over_ranks(self._mine, trainer, module))
        self._mine = Accounts(self.tasks)
        for task, planned in self._planned(trainer, module).items():
            self._total.check(task, planned, f"task {task}, before step {trainer.global_step}")
        if trainer.is_global_zero and trainer.global_step != self._written:
            self._append(LEDGER, self.rows(trainer, module))
            self._written = trainer.global_step

    def rows(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[dict[str, Any]]:
        """What happened until now, a row a task."""
        rows = []
        for task, planned in self._planned(trainer, module).items():
            skipped = self._total.skipped(task)
            rows.append(
                {
                    "step": trainer.global_step,
                    "task": task,
                    "samples": self.samples["train"][task],
                    "planned": planned,
                    "seen": self._total.seen(task),
                    "skipped": sum(skipped.values()),
                    "repeated": sum(skipped.values()),
                    "reasons": ", ".join(f"{count} {why}" for why, count in skipped.items()),
                }
            )
        return rows

    def describe(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        """The account of the training, as text."""
        rows = self.rows(trainer, module)
        if not any(row["reasons"] for row in rows):
            rows = [{name: v for name, v in row.items() if name != "reasons"} for row in rows]
        lines = [
            "ledger: every sample that the plan asked for was seen or skipped, and no other",
            tabulate(rows, headers="keys", tablefmt="github", intfmt=","),
        ]
        if self.folder and any(row["skipped"] for row in rows):
            lines.append(f"every skipped sample is in {self.folder / SKIPPED}")
        return "\n".join(lines)

    def _planned(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, int]:
        assert isinstance(module, ArkModule)
        step = trainer.global_step
        return {t: module.cycle.steps_of(t, step) * self.batch_size for t in self.tasks}

    # -- evaluation -------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._evaluated = Accounts(self.tasks)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._evaluated = Accounts(self.tasks)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._evaluated.enter(batch)
        self._note(batch, "val", trainer.global_rank)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._evaluated.enter(batch)
        self._note(batch, "test", trainer.global_rank)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._settle_evaluation(trainer, module, "val", trainer.limit_val_batches)

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._settle_evaluation(trainer, module, "test", trainer.limit_test_batches)

    def _settle_evaluation(
        self, trainer: pl.Trainer, module: pl.LightningModule, split: str, limit: float
    ) -> None:
        total = Accounts(self.tasks)
        total.add(_over_ranks(self._evaluated, trainer, module))
        # a debugging run may evaluate less: the number 1.0 is all, 1 is one batch
        whole = isinstance(limit, float) and limit == 1.0 and not trainer.sanity_checking
        for task in self.tasks:
            if whole:
                total.check(task, self.samples[split][task], f"task {task}, {split} split")
            if skipped := total.skipped(task):
                log.warning("%s: skipped in the %s split: %s", task, split, skipped)

    # -- bad samples ------------------------------------------------------------------------

    def _note(self, batch: Batch, split: str, rank: int) -> None:
        for skipped in batch.skipped:
            bad = self._bad.setdefault((split, batch.task), set())
            if skipped.message not in bad:
                bad.add(skipped.message)
                self._tell(skipped, batch.task, split, len(bad), rank)

    def _tell(self, skipped: Skipped, task: str, split: str, bad: int, rank: int) -> None:
        if bad <= _TOLD:
            log.warning("skipped: %s", skipped.message)
        row = {"task": task, "split": split, "reason": skipped.reason, "problem": skipped.message}
        self._append(f"rank{rank}-{SKIPPED}" if rank else SKIPPED, [row])
        size = self.samples[split][task]
        if bad > self.max_bad * size:
            raise ConfigError(
                f"task {task}: {bad} of the {size} samples of the {split} split could not be used, "
                f"a larger share than data.max_bad = {self.max_bad:g}; mend the shards or raise "
                f"data.max_bad. The last one: {skipped.message}"
            )

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        if self.folder is None:
            return
        path = self.folder / name
        begun = _cut_torn_row(path)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if not begun:
                writer.writeheader()
            writer.writerows(rows)


def _cut_torn_row(path: Path) -> bool:
    """A full disk or a kill may have cut off the last row. Returns whether there are others."""
    if not path.is_file():
        return False
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    return whole > 0


def _over_ranks(accounts: Accounts, trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    return trainer.strategy.reduce(accounts.as_tensor().to(module.device), reduce_op="sum")
