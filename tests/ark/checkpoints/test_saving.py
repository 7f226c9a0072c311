from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ark.checkpoints import saving
from ark.checkpoints.integrity import write_checkpoint
from ark.checkpoints.saving import LAST, PREVIOUS, SealedCheckpointIO, host_copy
from ark.checkpoints.sealing import DamagedCheckpoint, verify
from ark.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def make_checkpoint(step: int, value: float = 1.0) -> dict[str, Any]:
    return {
        "global_step": step,
        "loops": {"fit_loop": {"done": step}},
        "state_dict": OrderedDict(w=torch.full((1000,), value)),
    }


def step_of(path: Path) -> int:
    seal = verify(path)
    assert seal is not None
    return seal.step


@pytest.fixture
def io() -> Iterator[SealedCheckpointIO]:
    io = SealedCheckpointIO()
    yield io
    io.teardown()


class SlowDisk:
    """Writes wait until they are let go; counts them."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), 0

    def __call__(self, *args: Any) -> None:
        self.begun += 1
        assert self.go.wait(timeout=30)
        write_checkpoint(*args)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr(saving, "write_checkpoint", disk)
    return disk


def full_disk(*_: Any) -> None:
    raise ConfigError("run.root: the disk is full")


def soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_a_write_has_the_values_of_the_step_at_which_it_was_asked_for(
    tmp_path: Path, io: SealedCheckpointIO, slow_disk: SlowDisk
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    scores = {"a": torch.tensor(0.5)}

    def train() -> None:
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

    train()
    state = {"best": scores, "bad": ["x"]}
    checkpoint = make_checkpoint(1) | {"state_dict": module.state_dict(), "callbacks": state}
    checkpoint["optimizer_states"] = [optimizer.state_dict()]
    expected = copy.deepcopy(checkpoint)
    io.save_checkpoint(checkpoint, tmp_path / "x.ckpt")
    train()  # in place, while nothing is written yet
    scores["a"].fill_(9)
    scores["b"] = torch.tensor(1.0)
    state["bad"].append("y")
    optimizer.param_groups[0]["lr"] = 7.0
    slow_disk.go.set()
    found = io.load_checkpoint(tmp_path / "x.ckpt")
    assert not torch.equal(module[0].weight, found["state_dict"]["0.weight"])
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert found["callbacks"] == {"best": {"a": torch.tensor(0.5)}, "bad": ["x"]}
    assert found["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    assert found["state_dict"]._metadata == module.state_dict()._metadata


def test_saving_returns_before_the_write_and_a_second_one_waits(
    tmp_path: Path, io: SealedCheckpointIO, slow_disk: SlowDisk
) -> None:
    io.save_checkpoint(make_checkpoint(1), tmp_path / "1.ckpt")
    assert not (tmp_path / "1.ckpt").exists()
    second = threading.Thread(
        target=io.save_checkpoint, args=(make_checkpoint(2), tmp_path / "2.ckpt")
    )
    second.start()
    second.join(timeout=0.3)
    assert second.is_alive(), "a second write was taken on while one was under way"
    assert slow_disk.begun == 1
    slow_disk.go.set()
    second.join(timeout=20)
    assert not second.is_alive()
    io.flush()
    assert [step_of(tmp_path / f"{n}.ckpt") for n in (1, 2)] == [1, 2]


def test_without_background_the_file_is_there_at_once(tmp_path: Path) -> None:
    io = SealedCheckpointIO(background=False)
    for step in (1, 2):
        io.save_checkpoint(make_checkpoint(step), tmp_path / LAST)
        assert step_of(tmp_path / LAST) == step
    assert step_of(tmp_path / PREVIOUS) == 1
    io.remove_checkpoint(tmp_path / PREVIOUS)
    assert os.listdir(tmp_path) == [LAST]


def test_what_is_replaced_goes_after_the_write_and_not_if_that_failed(
    tmp_path: Path, io: SealedCheckpointIO, slow_disk: SlowDisk, monkeypatch
) -> None:
    old = tmp_path / "best-1.ckpt"
    write_checkpoint(make_checkpoint(1), old)
    io.save_checkpoint(make_checkpoint(2), tmp_path / "best-2.ckpt")
    io.remove_checkpoint(old)
    assert old.exists()
    slow_disk.go.set()
    io.flush()
    assert os.listdir(tmp_path) == ["best-2.ckpt"]
    monkeypatch.setattr(saving, "write_checkpoint", full_disk)
    io.save_checkpoint(make_checkpoint(3), tmp_path / "best-3.ckpt")
    io.remove_checkpoint(tmp_path / "best-2.ckpt")
    with pytest.raises(ConfigError, match="full"):
        io.flush()
    assert step_of(tmp_path / "best-2.ckpt") == 2


@pytest.mark.parametrize("at", ["save", "flush", "teardown", "load"])
def test_an_error_of_the_writer_is_said_at_once_and_raised_by_the_next_call(
    tmp_path: Path, io: SealedCheckpointIO, monkeypatch, caplog, at: str
) -> None:
    io.save_checkpoint(make_checkpoint(1), tmp_path / LAST)
    io.flush()
    monkeypatch.setattr(saving, "write_checkpoint", full_disk)
    with caplog.at_level(logging.ERROR, "ark"):
        io.save_checkpoint(make_checkpoint(2), tmp_path / LAST)
        assert soon(lambda: "the disk is full" in caplog.text)
    monkeypatch.undo()
    calls = {
        "save": lambda: io.save_checkpoint(make_checkpoint(3), tmp_path / LAST),
        "flush": io.flush,
        "teardown": io.teardown,
        "load": lambda: io.load_checkpoint(tmp_path / LAST),
    }
    with pytest.raises(ConfigError, match="the disk is full"):
        calls[at]()
    assert step_of(tmp_path / LAST) == 1
    io.save_checkpoint(make_checkpoint(4), tmp_path / LAST)  # once there is room again
    assert io.load_checkpoint(tmp_path / LAST)["global_step"] == 4


def test_the_last_becomes_the_previous_one(tmp_path: Path, io: SealedCheckpointIO) -> None:
    for step in (1, 2, 3):
        io.save_checkpoint(make_checkpoint(step), tmp_path / LAST)
    io.flush()
    assert {path.name: step_of(path) for path in tmp_path.iterdir()} == {LAST: 3, PREVIOUS: 2}


def test_a_damaged_last_does_not_take_the_place_of_an_intact_previous(
    tmp_path: Path, caplog
) -> None:
    write_checkpoint(make_checkpoint(1), tmp_path / PREVIOUS)
    write_checkpoint(make_checkpoint(2), tmp_path / LAST)
    data = bytearray((tmp_path / LAST).read_bytes())
    data[1000] ^= 4
    (tmp_path / LAST).write_bytes(data)
    io = SealedCheckpointIO()
    assert io.load_checkpoint(tmp_path / PREVIOUS)["global_step"] == 1
    io.save_checkpoint(make_checkpoint(2), tmp_path / LAST)
    io.teardown()
    assert {path.name: step_of(path) for path in tmp_path.iterdir()} == {LAST: 2, PREVIOUS: 1}
    assert "previous.ckpt stays" in caplog.text


def test_the_same_state_under_another_name_is_written_once(
    tmp_path: Path, io: SealedCheckpointIO, slow_disk: SlowDisk
) -> None:
    checkpoint = make_checkpoint(4)
    last, milestone, other = (tmp_path / name for name in (LAST, "step-4.ckpt", "best-4.ckpt"))
    io.save_checkpoint(checkpoint, last)
    io.save_checkpoint(checkpoint, milestone)  # does not wait either
    slow_disk.go.set()
    io.flush()
    assert last.samefile(milestone)
    for change in (
        lambda: checkpoint["state_dict"]["w"].add_(1),
        lambda: checkpoint["loops"].update(val_loop=1),
        lambda: checkpoint.update(global_step=5),
        lambda: checkpoint.update(optimizer_states=[]),
    ):
        change()
        io.save_checkpoint(checkpoint, other)
        io.flush()
        assert not last.samefile(other)
        io.save_checkpoint(checkpoint, last)
    io.save_checkpoint(make_checkpoint(6), last)
    io.flush()
    assert [step_of(path) for path in (last, milestone)] == [6, 4]
    assert slow_disk.begun == 10


def test_what_was_removed_is_not_linked_to(tmp_path: Path, io: SealedCheckpointIO) -> None:
    checkpoint = make_checkpoint(4)
    io.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    io.save_checkpoint(checkpoint, tmp_path / "b.ckpt")
    io.flush()
    assert os.listdir(tmp_path) == ["b.ckpt"]


def test_loading_verifies_and_unpickles_nothing_but_plain_data(
    tmp_path: Path, io: SealedCheckpointIO, caplog
) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(make_checkpoint(1), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # would have loaded it
    with pytest.raises(DamagedCheckpoint, match=r"x\.ckpt is damaged.*checksum"):
        io.load_checkpoint(path)
    write_checkpoint(make_checkpoint(1) | {"evil": Path("code")}, path)
    with pytest.raises(Exception, match="weights_only"):
        io.load_checkpoint(path)
    torch.save(make_checkpoint(3), path)
    with caplog.at_level(logging.INFO, "ark"):
        assert io.load_checkpoint(path)["global_step"] == 3
    assert "has no seal" in caplog.text


def test_left_overs_of_killed_sessions_are_removed_by_the_first_save(
    tmp_path: Path, io: SealedCheckpointIO
) -> None:
    (tmp_path / ".best-7.ckpt.tmp").write_bytes(b"half")
    io.save_checkpoint(make_checkpoint(8), tmp_path / LAST)
    io.flush()
    assert os.listdir(tmp_path) == [LAST]


@pytest.mark.parametrize(("path", "options"), [("s3://x/last.ckpt", None), ("x.ckpt", {"a": 1})])
def test_other_places_are_refused(io: SealedCheckpointIO, path: str, options: Any) -> None:
    with pytest.raises(ConfigError, match="written to local folders only"):
        io.save_checkpoint(make_checkpoint(1), path, options)


def test_a_copy_keeps_what_is_one_and_takes_no_more_than_is_shown() -> None:
    whole = torch.arange(1000.0)
    shared = nn.Parameter(torch.ones(3))
    checkpoint = {
        "view": whole[10:12],
        "twice": [shared.data, shared.data, shared.detach()],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "step": torch.tensor(3, dtype=torch.int64),
        "sets": {1, 2},
        "tuple": (1, [2]),
    }
    copied = host_copy(checkpoint)
    assert copied["view"].untyped_storage().nbytes() == 8
    first, *others = copied["twice"]
    assert all(other is first for other in others)
    assert first.data_ptr() != shared.data_ptr()
    assert copied["transposed"].stride() == (1, 3)
    assert copied["sets"] is not checkpoint["sets"]
    assert copied["tuple"][1] is not checkpoint["tuple"][1]
    torch.testing.assert_close(copied["view"], whole[10:12], rtol=0, atol=0)
    assert copied["step"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_of_a_gpu_is_pinned_and_complete() -> None:
    state = {"w": torch.randn(1 << 24, device="cuda")}
    for _ in range(20):  # what is queued before must be in the copy
        state["w"].mul_(1.01)
    expected = state["w"].clone()
    copied = host_copy(state)
    state["w"].zero_()
    assert copied["w"].is_pinned()
    assert torch.equal(copied["w"], expected.cpu())


CHILD = """
import resource, sys
from pathlib import Path
import torch
from ark.checkpoints.saving import SealedCheckpointIO
folder, background = Path(sys.argv[1]), sys.argv[2] == "True"
state = {f"w{i}": torch.ones(1 << 19) for i in range(30)}  # 63 MB
io = SealedCheckpointIO(background)
warm = {"global_step": 0, "state_dict": {"w": torch.ones(9)}}
io.save_checkpoint(warm, folder / "warm.ckpt"); io.flush()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in (1, 2, 3):
    io.save_checkpoint({"global_step": step, "state_dict": state}, folder / "last.ckpt")
    for value in state.values(): value.add_(1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / 63)
"""


@pytest.mark.parametrize("background", [True, False])
def test_there_is_one_copy_at_most_and_the_process_ends_after_its_writes(
    tmp_path: Path, background: bool
) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(background)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    copies = float(done.stdout)
    assert copies < (1.1 if background else 0.1)
    assert step_of(tmp_path / LAST) == 3  # though nobody waited for it
    found = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]["w0"]
    assert float(found.max()) == float(found.min()) == 3
