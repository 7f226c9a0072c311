from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ark.checkpoints.keeping import BestCheckpoint, SavingConfig, check_best, checkpoint_callbacks
from ark.checkpoints.saving import SealedCheckpointIO
from ark.checkpoints.sealing import verify
from ark.errors import ConfigError
from ark.network import Network
from toys import make_task

SCORES = [0.1, 0.5, 0.3, 0.7, 0.6, 0.2]  # of the validations, after every 4 steps


class Toy(pl.LightningModule):
    """24 steps; `val/score` as given, `val/a/dice` its negative."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.layer, self.scores = nn.Linear(1, 1), scores

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        score = self.scores[self.global_step // 4 - 1]
        self.log_dict({"val/score": score, "val/a/dice": -score})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(
    folder: Path,
    config: SavingConfig,
    resume: str | None = None,
    steps: int = 24,
    every: int = 3,
    scores: list[float] = SCORES,
    more: tuple[Callback, ...] = (),
) -> pl.Trainer:
    found = checkpoint_callbacks(folder, every, config)
    trainer = pl.Trainer(
        max_steps=steps,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[*found, *more],
        plugins=[SealedCheckpointIO(config.background)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.ones(24, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(
            Toy(scores),
            loader,
            DataLoader(TensorDataset(torch.ones(1, 1))),
            ckpt_path=resume and str(folder / resume),
        )
    return trainer


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.mark.parametrize("background", [True, False])
def test_the_last_two_the_best_and_the_milestones_are_kept(tmp_path: Path, background) -> None:
    fit(tmp_path, SavingConfig(milestone_every=9, background=background))
    expected = {"last.ckpt": 24, "previous.ckpt": 21, "best-16.ckpt": 16}
    expected |= {"step-9.ckpt": 9, "step-18.ckpt": 18}
    assert {name: verify(tmp_path / name).step for name in names(tmp_path)} == expected


def test_there_may_be_several_metrics_and_several_best(tmp_path: Path) -> None:
    best = {"val/score": "max", "val/a/dice": "max"}  # opposites
    fit(tmp_path, SavingConfig(best=best, keep_best=2), every=100)
    expected = {"best-16.ckpt", "best-20.ckpt", "best-val-a-dice-4.ckpt", "best-val-a-dice-24.ckpt"}
    assert names(tmp_path) == expected
    shutil.rmtree(tmp_path)
    fit(tmp_path, SavingConfig(best={"val/a/dice": "min"}), every=100)
    assert names(tmp_path) == {"best-val-a-dice-16.ckpt"}


def test_a_milestone_at_the_step_of_the_last_is_its_second_name(tmp_path: Path) -> None:
    fit(tmp_path, SavingConfig(best={}, milestone_every=24), every=24)
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step-24.ckpt")
    shutil.rmtree(tmp_path)
    fit(tmp_path, SavingConfig(best={}, milestone_every=3))  # one interval for both
    assert len(names(tmp_path)) == 2 + 8


def test_lightning_calls_them_after_the_others(tmp_path: Path) -> None:
    first, second = Callback(), Callback()
    trainer = fit(tmp_path, SavingConfig(milestone_every=5), steps=1, more=(first, second))
    kinds = [c for c in trainer.callbacks if c in (first, second) or hasattr(c, "best_k_models")]
    assert kinds[:2] == [first, second]
    assert len(kinds) == 5


def test_a_resumed_run_keeps_its_best_score(tmp_path: Path) -> None:
    fit(tmp_path, SavingConfig(), steps=18)
    assert "best-16.ckpt" in names(tmp_path)
    fit(tmp_path, SavingConfig(), "last.ckpt")  # two worse ones follow
    assert names(tmp_path) == {"last.ckpt", "previous.ckpt", "best-16.ckpt"}


def test_a_moved_run_keeps_its_best_score(tmp_path: Path) -> None:
    fit(tmp_path / "one", SavingConfig(), steps=18)
    shutil.move(tmp_path / "one", tmp_path / "other")
    trainer = fit(tmp_path / "other", SavingConfig(), "last.ckpt")
    assert names(tmp_path / "other") == {"last.ckpt", "previous.ckpt", "best-16.ckpt"}
    assert not (tmp_path / "one").exists()
    best = next(c for c in trainer.callbacks if isinstance(c, BestCheckpoint))
    assert best.best_model_path == str(tmp_path / "other" / "best-16.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.7)


def test_a_best_score_whose_file_is_gone_does_not_count(tmp_path: Path) -> None:
    fit(tmp_path, SavingConfig(), steps=18)
    (tmp_path / "best-16.ckpt").unlink()
    fit(tmp_path, SavingConfig(), "last.ckpt")
    assert names(tmp_path) == {"last.ckpt", "previous.ckpt", "best-20.ckpt"}


def test_a_best_that_the_run_went_on_from_goes_when_there_is_a_better_one(tmp_path: Path) -> None:
    fit(tmp_path, SavingConfig(), steps=9)
    assert "best-8.ckpt" in names(tmp_path)
    fit(tmp_path, SavingConfig(), "best-8.ckpt")
    assert names(tmp_path) == {"last.ckpt", "previous.ckpt", "best-16.ckpt"}


def test_a_best_in_another_folder_is_left_alone(tmp_path: Path) -> None:
    fit(tmp_path / "one", SavingConfig(), steps=9)
    shutil.copytree(tmp_path / "one", tmp_path / "kept")
    fit(tmp_path / "other", SavingConfig(), "../one/best-8.ckpt")
    assert names(tmp_path / "one") == names(tmp_path / "kept")
    assert "best-16.ckpt" in names(tmp_path / "other")


def test_metrics_that_no_validation_gives_are_refused() -> None:
    kind = "segmentation"
    network = Network({"name": "test_efficientnet", "image_size": 64}, None, [make_task(kind)])
    (head,) = network.heads_by_key().values()
    warnings.simplefilter("ignore")  # torchmetrics: computed before it saw something
    metric = f"toy/{kind}/{head.main_metric}"
    good = ("val/score", "val_teacher/score", f"val/{metric}", f"val_teacher/{metric}")
    check_best(SavingConfig(best=dict.fromkeys(good, "max")), network)
    for bad in ("score", f"val/toy/{kind}/dise", f"test/{metric}"):
        with pytest.raises(ConfigError, match=rf"run\.saving\.best: {bad} is no metric.* val"):
            check_best(SavingConfig(best={bad: "max"}), network)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"keep_best": 0}, "keep_best=0"),
        ({"milestone_every": 0}, "milestone_every=0"),
        ({"best": {"val/score": "most"}}, "val/score: 'most'; expected max or min"),
    ],
)
def test_the_configuration_is_checked(option: dict[str, Any], message: str) -> None:
    SavingConfig().check()
    with pytest.raises(ConfigError, match=message):
        SavingConfig(**option).check()
