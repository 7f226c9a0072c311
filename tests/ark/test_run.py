from __future__ import annotations

import pytest
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from ark.run import RunConfig, loggers, open_folder
from ark.types import ConfigError


@pytest.fixture
def run(tmp_path) -> RunConfig:
    return RunConfig(name="x", root=str(tmp_path))


def test_a_folder_holds_one_run(run: RunConfig) -> None:
    open_folder(run, resumes=False)
    run.checkpoints.mkdir()
    checkpoint = run.checkpoints / "step-3.ckpt"
    checkpoint.write_text("")
    with pytest.raises(ConfigError, match=r"go on with it \(--ckpt_path last\)"):
        open_folder(run, resumes=False)
    open_folder(run, resumes=True)
    assert checkpoint.exists()
    (run.folder / "results.json").write_text("{}")
    run.overwrite = True
    open_folder(run, resumes=False)
    assert not checkpoint.exists()
    assert not (run.folder / "results.json").exists()


def test_without_a_key_wandb_is_offline(run: RunConfig, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    csv, wandb = loggers(run)
    assert isinstance(csv, CSVLogger)
    assert isinstance(wandb, WandbLogger)
    assert wandb._offline
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert not loggers(run)[1]._offline
    run.wandb = "off"
    assert [type(logger) for logger in loggers(run)] == [CSVLogger]
