"""Whatever befalls a rank ends the run on all ranks, which say why; then it goes on and ends as if
nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from chaos import RUN, differences, recipe_of, session, start
from pytorch_lightning.callbacks import Callback
from test_ranks import ark_on

from datamodules.stream import TrainBatches

pytestmark = pytest.mark.slow
STEP, VICTIM = 5, 1  # a checkpoint is due before it and after it
WAIT = 10  # seconds of run.timeout
SOON = 25.0  # seconds; some 2, but of a machine that does other things
WHERE = "step 5, cycle 1, tiny_organs/organs (release); its samples: {'tiny_organs/organs': ['"
LOST = "Another rank has died"
KILLED = "Nothing was heard of rank 1."


class Fault(Callback):
    """Happens to rank VICTIM in step STEP.

    Args:
        kind: "hang", "die", "nan", "memory", "worker" or "stall".
        file: is written then.
    """

    def __init__(self, kind: str, file: str) -> None:
        self.kind, self.file = kind, Path(file)

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.kind != "stall" or trainer.global_rank != VICTIM:
            return
        usual = TrainBatches.__getitem__

        def stalls(batches: TrainBatches, item: int) -> Any:
            if item == STEP:
                self.file.touch()
                time.sleep(10_000)
            return usual(batches, item)

        TrainBatches.__getitem__ = stalls  # type: ignore[method-assign]  # workers are forks

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self._happen(trainer, module, self.kind == "nan")

    def on_before_backward(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self._happen(trainer, module, self.kind not in ("nan", "stall"))

    def _happen(self, trainer: pl.Trainer, module: Any, now: bool) -> None:
        if now and (trainer.global_step, trainer.global_rank) == (STEP, VICTIM):
            self.file.touch()
            getattr(self, self.kind)(module)

    def hang(self, module: Any) -> None:
        time.sleep(10_000)

    def die(self, module: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def nan(self, module: Any) -> None:
        with torch.no_grad():
            next(module.network.backbone.parameters()).fill_(torch.nan)

    def memory(self, module: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def worker(self, module: Any) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        time.sleep(10_000)  # its death is noticed wherever the trainer is


@dataclass
class Case:
    """A fault, and what the other rank and the victim say of it."""

    kind: str
    other: list[str]
    victim: list[str]
    waits: bool = False  # until run.timeout is over


CASES = [
    Case("hang", [WHERE, "did not answer within run.timeout", KILLED], [], waits=True),
    Case("die", [WHERE, LOST, KILLED], []),
    Case("nan", ["not finite"], [WHERE, "step5_rank1.pt", "--ckpt_path=last"]),
    Case("memory", [WHERE, LOST], [WHERE, "GiB in use", "Lower data.batch_size"]),
    Case("worker", [WHERE, LOST], [WHERE, "A process that decodes was killed", "/dev/shm"]),
    Case(
        "stall",
        [WHERE],
        ["rank 1 of 2 failed waiting for the batch of step 5", "gave no batch for run.timeout"],
        waits=True,
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    assert session(recipe_of(folder, cycles=1), folder / "trace", 2).codes == [0, 0]
    return folder / RUN


def fail(recipe: Path, case: Case) -> tuple[list[str], float]:
    """What each rank said, and the seconds from the fault to the end of the other one."""
    said, fault = recipe.parent / "said", recipe.parent / "fault"
    said.mkdir()
    init_args = {"kind": case.kind, "file": str(fault)}
    callback = {"class_path": "test_rank_faults.Fault", "init_args": init_args}
    ranks = start(recipe, said, 2, callback, f"--run.timeout={WAIT if case.waits else 60}")
    other, victim = ranks[1 - VICTIM], ranks[VICTIM]
    other.join(timeout=120)
    seconds = time.time() - fault.stat().st_mtime
    if case.kind == "hang":
        victim.kill()
    for rank in ranks:
        rank.join(timeout=20)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert None not in codes
    assert 0 not in codes
    return [(said / f"rank{rank}.log").read_text() for rank in range(2)], seconds


def assert_intact(run: Path) -> None:
    """The checkpoint before the fault is there, with nothing of it inside."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEP - 1
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_all_ranks_end_and_the_run_goes_on(case: Case, whole: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, cycles=1)
    (other, victim), seconds = fail(recipe, case)
    for said, expected in ((other, case.other), (victim, case.victim)):
        assert [part for part in expected if part not in said] == [], said[-6000:]
    if case.kind not in ("hang", "die"):
        assert "Nothing was heard" not in other
    assert seconds < (WAIT if case.waits else 0) + SOON
    assert_intact(tmp_path / RUN)
    assert session(recipe, tmp_path / "trace", 2).codes == [0, 0]
    assert differences(whole, tmp_path / RUN) == []


def test_lightnings_own_launcher_leaves_nobody(tmp_path: Path) -> None:
    """`--trainer.devices=2` without torchrun: the first rank started the other one."""
    fault = {"kind": "hang", "file": str(tmp_path / "fault")}
    callback = {"class_path": "test_rank_faults.Fault", "init_args": fault}
    args = ["--config", recipe_of(tmp_path, cycles=1), f"--run.timeout={WAIT}"]
    said = ark_on(2, "fit", *args, f"--trainer.callbacks=[{callback}]", code=None)
    assert "did not answer within run.timeout" in said
    assert not running(str(tmp_path))
    assert_intact(tmp_path / RUN)


def running(part: str) -> list[str]:
    """The commands of this machine that have `part` in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if re.search(re.escape(part), command):
            found.append(command)
    return found
