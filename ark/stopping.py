"""Stops a run where nothing is lost: after a whole optimiser step, the same one on all ranks."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn

from ark.callbacks import describe
from ark.checkpoints.saving import SealedCheckpointIO
from ark.distributed import ranks
from ark.module import ArkModule
from ark.signals import at_once, end_workers
from ark.tracking.wandb_logger import mark_preempted
from ark.types import ConfigError

log = logging.getLogger("ark")
INTERRUPTED = os.EX_TEMPFAIL  # 75: the exit code of a run that has to go on
AUTO = "auto"
_PATIENCE = 10.0  # seconds in which the other ranks notice that one has failed


class Interrupted(SystemExit):
    """Ends the process with INTERRUPTED, once all that is open is closed.

    Args:
        by: the signal.
        where: how far the run is, and where that is kept.
        together: whether all ranks stop.
        requeue: whether the job shall run again.
    """

    def __init__(
        self, by: signal.Signals, where: str, together: bool = False, requeue: bool = False
    ) -> None:
        super().__init__(INTERRUPTED)
        self.by, self.where, self.together, self.requeue = by, where, together, requeue


class GracefulStop(Callback):
    """On SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) the step is finished, a checkpoint written, and the
    process ended with INTERRUPTED. A second SIGINT ends it at once.

    The handler only notes the signal: nothing else is safe there, least of all the collectives of
    Lightning's own handlers, which wait for ever where another rank is in its backward. The ranks
    tell each other what they noted after each step, in the background while the next one is
    computed; so they stop after the same step, one later than the first could have, and none waits.
    Nothing of it touches a GPU.

    In a validation between steps the rest is left out, and done when the run goes on. Where nothing
    was learned that is not in a checkpoint yet, none is written. Put it last in the list: what it
    saves holds what the other callbacks did.

    Args:
        checkpoint: the file to write; None where nothing is trained.
        requeue: the signal after which a SLURM job is queued again, if it has made a step.
    """

    def __init__(self, checkpoint: Path | None, requeue: signal.Signals = signal.SIGUSR1) -> None:
        self.checkpoint, self.requeue = checkpoint, requeue
        self._noted = 0  # the signal that came
        self._looks = False  # whether a loop runs that will look at it
        self._group: Any = None  # of all ranks, over the CPU; None where there is but one
        self._vote: tuple[torch.Tensor, Any] | None = None  # under way
        self._done = 0  # optimiser steps
        self._learned = False  # whether this session made a step
        self._launched: list[subprocess.Popen[bytes]] = []  # ranks that Lightning started from here
        self._spawned = False  # whether Lightning started this process, on behalf of another

    # -- signals --------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around everything a run does; the last to be left. What comes later is ignored: the
        process is about to end, and shall not look as if it had been killed.

        Raises:
            Interrupted: a signal came; a job that shall run again is queued.
        """
        numbers = {signal.SIGTERM, signal.SIGINT, self.requeue}
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        except Interrupted as stop:
            self._leave(stop)
            raise
        finally:
            self._looks = False
            end_workers()
            self._end_launched()
            for number, handler in before.items():
                late = handler == signal.SIG_DFL
                signal.signal(number, _nothing if late else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = self._noted or number
        if not self._looks:  # preparing data, or writing the report
            queued = self._learned and self._may_queue(number)  # it might never make a step
            where = "outside of training; nothing is lost"
            raise Interrupted(signal.Signals(number), where, requeue=queued)

    def _may_queue(self, number: int) -> bool:
        return number == self.requeue and "SLURM_JOB_ID" in os.environ

    def _leave(self, stop: Interrupted) -> None:
        """A launcher kills all ranks when one has ended, so they end together."""
        self._looks = True  # whoever still signals: it is noted
        if _first():
            again = "go on with the same command and --ckpt_path auto"
            if stop.requeue:
                again = requeue_job()
            log.warning("stopped by %s %s; %s", stop.by.name, stop.where, again)
        if not stop.together:
            return  # the launcher's kill is what ends the others
        if self._group is not None and dist.is_initialized():
            with suppress(RuntimeError):  # another rank is gone already
                dist.barrier(group=self._group)
        if self._spawned:
            stop.code = 0  # for any other, Lightning kills the first rank, whose code counts

    def _end_launched(self) -> None:
        """Ranks that Lightning started from this one: none may hang on when this one has failed."""
        for process in self._launched if sys.exc_info()[0] else []:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()

    # -- what Lightning calls -------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # Lightning's handlers run collectives, and ask all ranks in each step with one on the GPU
        # whether a signal came, which makes every step wait for the device.
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        if self._group is None and ranks.several():
            patience = getattr(trainer.strategy, "_timeout", None)
            with at_once():
                self._group = dist.new_group(backend="gloo", timeout=patience)
        self._launched = getattr(trainer.strategy.launcher, "procs", [])
        environment = getattr(trainer.strategy, "cluster_environment", None)
        self._spawned = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        self._looks = True

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # one rank alone must not leave: the next loop looks, or the run ends by itself
        self._looks = self._group is not None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *batch: Any
    ) -> None:
        if trainer.global_step == self._done:
            return  # gradients still accumulate
        self._done, self._learned = trainer.global_step, True
        noted = self._heard() if self._group is not None else self._noted
        if noted:
            self._stop(trainer, module, noted)
        if self._group is not None:
            self._ask()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._heard()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._skip_rest(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._skip_rest(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop_if_agreed(trainer, module)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop_if_agreed(trainer, module)

    # -- the ranks' agreement -------------------------------------------------------------------

    def _ask(self) -> None:
        vote = torch.tensor([self._noted])
        self._vote = vote, dist.all_reduce(vote, dist.ReduceOp.MAX, self._group, async_op=True)

    def _heard(self) -> int:
        """The signal of any rank, as of the last `_ask`; 0 for none."""
        if self._vote is None:
            return 0
        (vote, work), self._vote = self._vote, None
        work.wait()
        return int(vote)

    def _skip_rest(self, trainer: pl.Trainer) -> None:
        """Ranks score on their own, unless they share parameters."""
        if self._noted and isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise StopIteration  # ends Lightning's evaluation loop

    def _stop_if_agreed(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """At the end of every scoring, before the ranks join what they found."""
        noted = self._noted
        if self._group is not None:
            before = self._heard()
            self._ask()
            noted = max(before, self._heard())
        if noted:
            self._stop(trainer, module, noted)

    # -- stopping -------------------------------------------------------------------------------

    def _stop(self, trainer: pl.Trainer, module: pl.LightningModule, number: int) -> None:
        where = describe_step(trainer, module)
        if self.checkpoint is not None and self._learned:
            if trainer.state.fn == TrainerFn.FITTING:
                self._save(trainer, self.checkpoint)
            where += f"; checkpoint {self.checkpoint}"
        queued = self._may_queue(number)
        if queued and not self._learned:  # it might never make one
            where += (
                "; this session made no step, so its job is not queued again: give it more time"
            )
        elif queued:
            mark_preempted(trainer.loggers)
        raise Interrupted(signal.Signals(number), where, True, queued and self._learned)

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        """Returns when the file is whole."""
        trainer.save_checkpoint(path, weights_only=False)
        checkpoints = trainer.strategy.checkpoint_io
        if isinstance(checkpoints, SealedCheckpointIO):
            checkpoints.flush()


def describe_step(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """`after step 41 of 96 (cycle 2/8  wingspan/organs  lock backbone)`"""
    done = trainer.global_step
    if not isinstance(module, ArkModule):
        return f"after step {done}"
    if done == 0:
        return "before the first step"
    at = module.cycle.at(done - 1)
    doing = "" if trainer.training else f", in {trainer.state.stage.value}"  # type: ignore[union-attr]
    place = describe(at, module.cycle.cycles)
    return f"after step {done} of {module.cycle.total_steps} ({place}){doing}"


def requeue_job() -> str:
    """Has SLURM run this very job again; says what came of it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        command = ["scontrol", "requeue", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        error = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as failure:
        error = str(failure)
    if error:
        return f"SLURM did not requeue job {job}: {error}; submit it again"
    return f"job {job} is queued again and goes on by itself"


def plugins() -> list[Any]:
    """For the trainer: under srun, SLURM's ranks without Lightning's own way of requeueing, which
    saves inside the signal handler."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def resolve_auto(ckpt_path: str | None, checkpoints: Path, overwrite: bool) -> str | None:
    """What `ckpt_path` "auto" means: "last" where the run has a checkpoint, else None, a new run.
    So one command begins a run and goes on with it. Anything else stays what it is.

    Args:
        checkpoints: the run's folder of checkpoints.

    Raises:
        ConfigError: the run shall be overwritten too.
    """
    if ckpt_path != AUTO:
        return ckpt_path
    if overwrite:
        raise ConfigError(
            "run.overwrite=true and ckpt_path=auto: after a requeue the run would be thrown away, "
            "or the old one gone on with; delete the old run's folder, or choose another run.name"
        )
    return "last" if any(checkpoints.glob("*.ckpt")) else None


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _nothing(*_: Any) -> None:
    """In place of what Lightning does about signals, and of a handler."""
