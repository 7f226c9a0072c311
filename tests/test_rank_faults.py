"""A rank that dies, hangs or finds a NaN ends the run on all ranks, which say why; it goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from chaos import recipe_of
from pytorch_lightning.callbacks import Callback
from test_ranks import ark_on

pytestmark = pytest.mark.slow
STEP, VICTIM = 5, 1  # a checkpoint is due before it and after it


class Fault(Callback):
    """Happens to rank VICTIM in step STEP.

    Args:
        kind: "hang", "die" or "nan".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) != (STEP, VICTIM):
            return
        if self.kind == "hang":
            time.sleep(10_000)
        if self.kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            next(module.network.backbone.parameters()).fill_(torch.nan)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_of(tmp_path_factory.mktemp("faults"), cycles=1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("hang", ["Another rank did not answer within run.timeout"]),
        ("die", []),
        (
            "nan",
            ["rank 1 of 2 failed in step 5, cycle 1, tiny_organs/organs", "step5_rank1.pt"],
        ),
    ],
)
def test_all_ranks_end_and_the_run_goes_on(recipe: Path, kind: str, said: list[str]) -> None:
    fault = {"class_path": "test_rank_faults.Fault", "init_args": {"kind": kind}}
    args = ["fit", "--config", recipe, f"--run.name={kind}", "--run.timeout=10"]
    began = time.monotonic()
    output = ark_on(2, *args, f"--trainer.callbacks=[{fault}]", code=None)
    assert time.monotonic() - began < 90
    assert all(part in output for part in said), output[-6000:]
    saved = recipe.parent / kind / "checkpoints" / "last.ckpt"
    state = torch.load(saved, weights_only=True)
    assert state["global_step"] == STEP - 1
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())
    ark_on(2, *args, "--ckpt_path=auto")
    assert (recipe.parent / kind / "results.json").is_file()
