"""`ark fit` from its first line to its last: score, train, score, report. And `ark test`."""

from __future__ import annotations

import logging
import time

import pytorch_lightning as pl

from ark import forgetting, report
from ark.checkpoint import save_networks
from ark.growing import table as growth
from ark.module import ArkModule
from ark.run import LAST, RunConfig
from ark.scores import WHO, prefix

log = logging.getLogger("ark")


def fit(
    trainer: pl.Trainer,
    module: ArkModule,
    datamodule: pl.LightningDataModule,
    run: RunConfig,
    ckpt_path: str | None,
) -> None:
    """Trains and leaves in the run's folder what it learned.

    Args:
        ckpt_path: the checkpoint to go on from; None starts anew.
    """
    if run.baseline and ckpt_path is None:
        start = _score(trainer, module, datamodule, ("student",))
        if trainer.is_global_zero:
            report.write_json(run.folder / report.START, start["student"])
        if run.measures_forgetting:
            _score(trainer, module, datamodule, WHO, "val")
    began = time.monotonic()
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    if not trainer.state.finished:
        return
    steps = trainer.global_step
    ended = steps == module.cycle.total_steps and bool(trainer.checkpoint_callbacks)
    if ended and not run.saves(module.cycle, steps):  # else a stop while scoring costs steps
        trainer.save_checkpoint(run.checkpoints / LAST, weights_only=False)
    calibrate(trainer, module, datamodule)
    # The end need not be a multiple of the steps between checkpoints. Of a run that max_steps cut
    # short the last of those stays: Lightning would take one written now for finished.
    if ended:
        trainer.save_checkpoint(run.checkpoints / LAST, weights_only=False)
    columns = _score(trainer, module, datamodule, WHO, draws=run.bootstraps)
    save_networks(run.folder / "model", student=module.network, teacher=module.teacher.network)
    if trainer.is_global_zero:
        _conclude(module, run, columns, trainer.global_step, time.monotonic() - began)


def calibrate(trainer: pl.Trainer, module: ArkModule, datamodule: pl.LightningDataModule) -> None:
    """Lets the heads choose thresholds and temperatures on the validation split, for the scores
    on the test split and for who uses the model."""
    module.calibrating = True
    _score(trainer, module, datamodule, WHO, "val")
    module.calibrating = False


def score(
    trainer: pl.Trainer,
    module: ArkModule,
    datamodule: pl.LightningDataModule,
    split: str,
    ckpt_path: str | None,
    draws: int,
) -> None:
    """`ark test` and `ark validate`: prints every metric of student and teacher of a checkpoint."""
    columns = _score(trainer, module, datamodule, WHO, split, ckpt_path, draws)
    if trainer.is_global_zero:
        heads = module.network.heads_by_key()
        table = report.table(columns, heads, every=True, intervals=module.intervals)
        print(f"\n{split} split of {ckpt_path}\n\n{table}")


def _score(
    trainer: pl.Trainer,
    module: ArkModule,
    datamodule: pl.LightningDataModule,
    who: tuple[str, ...],
    split: str = "test",
    ckpt_path: str | None = None,
    draws: int = 0,
) -> dict[str, report.Results]:
    """Scores a split; without `ckpt_path` the networks as they stand now."""
    evaluate = {"test": trainer.test, "val": trainer.validate}[split]
    module.scored, module.draws = who, draws
    evaluate(module, datamodule, ckpt_path=ckpt_path, verbose=False)
    module.scored, module.draws = WHO, 0
    metrics = trainer.callback_metrics
    return {name: report.collect(metrics, prefix(split, name), module.keys) for name in who}


def _conclude(
    module: ArkModule, run: RunConfig, scores: dict[str, report.Results], steps: int, seconds: float
) -> None:
    start = report.read_json(run.folder / report.START)
    columns = {"start": start, **scores} if start else scores
    facts = [
        f"start: {module.start}",
        f"{steps} optimiser steps, {module.cycle.cycles} cycles; {seconds:.0f} s in this session",
    ]
    heads = module.network.heads_by_key()
    table = report.write_report(
        run.folder, run.name, columns, facts, heads, module.intervals, module.ontology
    )
    lines = growth.read(run.folder)
    if run.measures_forgetting:
        lines += forgetting.conclude(run.folder, module.cycle, module.keys)
    with (run.folder / report.REPORT).open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    log.info("\n%s\n", table)
    log.info("report, pictures, checkpoints and the published model are in %s", run.folder)
    if steps < module.cycle.total_steps:
        log.warning("%s", _cut_short(run, steps, module.cycle.total_steps))


def _cut_short(run: RunConfig, steps: int, total: int) -> str:
    """Where a run goes on that the trainer's limits ended before its plan's end."""
    if any(run.checkpoints.glob("*.ckpt")):
        kept = "--ckpt_path=last goes on from the newest checkpoint"
    else:
        kept = "no checkpoint was written; run.checkpoint_every says how often"
    return f"the trainer's limits ended the run after step {steps} of {total}; {kept}"
