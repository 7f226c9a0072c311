from __future__ import annotations

import pytest
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from ark.run import RunConfig, check_folder, clear_folder, loggers
from ark.types import ConfigError


@pytest.fixture
def run(tmp_path) -> RunConfig:
    return RunConfig(name="x", root=str(tmp_path))


def test_a_folder_holds_one_run(run: RunConfig) -> None:
    check_folder(run, None)
    clear_folder(run)
    run.checkpoints.mkdir()
    checkpoint = run.checkpoints / "last.ckpt"
    checkpoint.write_text("")
    (run.folder / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"go on with it \(--ckpt_path last\)"):
        check_folder(run, None)
    check_folder(run, "last")
    run.overwrite = True
    check_folder(run, None)
    assert checkpoint.exists(), "checking changed something"
    clear_folder(run)
    assert not checkpoint.exists()
    assert not (run.folder / "results.json").exists()


def test_what_is_not_there_cannot_be_resumed(run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint .*x/checkpoints/last\.ckpt"):
        check_folder(run, "last")
    with pytest.raises(ConfigError, match=r"no checkpoint other\.ckpt"):
        check_folder(run, "other.ckpt")


@pytest.mark.parametrize("option", ["validate_every", "checkpoint_every"])
def test_intervals_are_checked(run: RunConfig, option: str) -> None:
    setattr(run, option, 0)
    with pytest.raises(ConfigError, match=f"{option}=0"):
        check_folder(run, None)


def test_a_resumed_run_goes_on_in_its_wandb_run(run: RunConfig) -> None:
    clear_folder(run)
    first, again = loggers(run)[1]._id, loggers(run)[1]._id
    assert first == again
    clear_folder(run)
    assert loggers(run)[1]._id != first


def test_without_a_key_wandb_is_offline(run: RunConfig, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    clear_folder(run)
    csv, wandb = loggers(run)
    assert isinstance(csv, CSVLogger)
    assert isinstance(wandb, WandbLogger)
    assert wandb.offline
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert not loggers(run)[1].offline
    run.wandb = "off"
    assert [type(logger) for logger in loggers(run)] == [CSVLogger]
