"""Two ranks with a sharded network: gradients, locks, teacher, and what it is saved in."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import sharded_ranks
from sharded_ranks import on

from ark.checkpoints.integrity import newest_intact, write_checkpoint
from ark.checkpoints.sealed_folder import step_of_folder, verify_folder
from ark.checkpoints.sealing import DamagedCheckpoint
from ark.checkpoints.shards import METADATA, PlainReader
from ark.distributed.sharding import check_options
from ark.types import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharding")]


def test_steps(tmp_path: Path) -> None:
    on(2, sharded_ranks.steps, tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints that two ranks wrote."""
    folder = tmp_path_factory.mktemp("written")
    on(2, sharded_ranks.write, folder)
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "copied")


def names(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith("rendezvous")}


def test_the_two_last_are_whole(written: Path) -> None:
    assert names(written) == {"last.ckpt", "previous.ckpt"}  # and no half of the one that failed
    for name, step in (("last.ckpt", 2), ("previous.ckpt", 1)):
        verify_folder(written / name)
        assert step_of_folder(written / name) == step


@pytest.mark.parametrize("count", [1, 3])
def test_shards_are_read_on_any_number_of_ranks(written: Path, tmp_path: Path, count: int) -> None:
    on(count, sharded_ranks.read, tmp_path, written / "last.ckpt", 2)


def test_a_changed_byte_is_found(copied: Path, tmp_path: Path) -> None:
    shards = copied / "last.ckpt" / "__1_0.distcp"
    data = bytearray(shards.read_bytes())
    data[len(data) // 2] ^= 1
    shards.write_bytes(data)
    said: list[str] = []
    assert newest_intact(copied, said.append) == copied / "previous.ckpt"
    assert "__1_0.distcp does not have the checksum" in said[0]
    on(2, sharded_ranks.read_damaged, tmp_path, copied / "last.ckpt")


@pytest.mark.parametrize("file", ["seal.json", "rest.pt", METADATA, "__0_0.distcp"])
def test_a_missing_or_cut_file_is_found(copied: Path, file: str) -> None:
    path = copied / "last.ckpt" / file
    os.truncate(path, path.stat().st_size // 2)
    assert newest_intact(copied) == copied / "previous.ckpt"
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match=rf"damaged: {file}|it has no {file}"):
        step_of_folder(copied / "last.ckpt")


def test_a_file_takes_the_place_of_a_folder(copied: Path) -> None:
    last, previous = copied / "last.ckpt", copied / "previous.ckpt"
    write_checkpoint({"global_step": 3}, last, previous)
    assert (last.is_file(), step_of_folder(previous)) == (True, 2)
    write_checkpoint({"global_step": 4}, last, previous)
    assert (last.is_file(), previous.is_file()) == (True, True)
    assert names(copied) == {"last.ckpt", "previous.ckpt"}


class Foreign:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_metadata_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / METADATA).write_bytes(pickle.dumps(Foreign()))
    with pytest.raises(DamagedCheckpoint, match=r"holds posix\.system"):
        PlainReader(tmp_path).read_metadata()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("option", [{"precision": "16-mixed"}, {"clip_algorithm": "value"}])
def test_what_shards_cannot_do_is_refused(option: dict[str, str]) -> None:
    fine: dict[str, str] = {"precision": "bf16-mixed", "clip_algorithm": "norm"}
    check_options(**fine)
    with pytest.raises(ConfigError, match=next(iter(option.values()))):
        check_options(**{**fine, **option})
