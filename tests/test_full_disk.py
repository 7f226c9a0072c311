"""A disk that fills up at any moment of a run: one clear line, and the run goes on and ends the
same. Checkpoints on full disks: `tests/ark/checkpoints/test_saving_run.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
from chaos import differences
from commands import ark, write_recipe
from disks import disk_of
from pytorch_lightning.callbacks import Callback

pytestmark = pytest.mark.slow


class Fill(Callback):
    """Fills the disk to its last byte.

    Args:
        when: "train" (in step 3), "end" (of the training), "score" or "report".
        folder: on that disk.
    """

    def __init__(self, when: str, folder: str) -> None:
        self.when, self.file = when, Path(folder) / "filling"

    def _fill(self, now: bool) -> None:
        if not now:
            return
        size = 1 << 20
        with self.file.open("wb", buffering=0) as file:
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._fill(self.when == "train" and trainer.global_step == 3)

    def on_train_end(self, *_: Any) -> None:
        self._fill(self.when == "end")

    def on_test_start(self, *_: Any) -> None:
        self._fill(self.when == "score")

    def on_test_end(self, *_: Any) -> None:
        self._fill(self.when == "report")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    only = ["tiny_findings/findings", "tiny_organs/diagnosis"]
    run: dict[str, Any] = {
        "root": str(folder / "runs"), "wandb": "off", "pictures": 1, "baseline": False,
        "bootstraps": 20, "checkpoint_every": 4, "validate": "phase",
    }  # fmt: skip
    data = {"image_size": 32, "batch_size": 4, "workers": 0, "only": only}
    return write_recipe(folder, data=data, run=run)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    ark("fit", "--config", recipe, "--run.name=whole")
    return recipe.parent / "runs" / "whole"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("40m", tmp_path / "disk") as folder:
        yield folder


@pytest.mark.parametrize("when", ["train", "end", "score", "report"])
def test_a_full_disk_is_said_and_the_run_goes_on(
    recipe: Path, whole: Path, disk: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "--config", recipe, "--run.name=full", f"--run.root={disk}"]
    fill = {"class_path": "test_full_disk.Fill", "init_args": {"when": when, "folder": str(disk)}}
    with pytest.raises(SystemExit) as exit:
        ark(*args, f"--trainer.callbacks=[{fill}]")
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "ark: error: run.root: " in said
    assert "No space left on device" in said
    (disk / "filling").unlink()
    ark(*args, "--ckpt_path=auto")
    assert differences(whole, disk / "full") == []
    ledger = pd.read_csv(disk / "full" / "ledger.csv")
    assert (ledger["planned"] == ledger["seen"]).all()
