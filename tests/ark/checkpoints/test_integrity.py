from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from disks import disk_of

from ark.checkpoints.integrity import (
    check_writable,
    link,
    newest_intact,
    remove_halves,
    write_checkpoint,
)
from ark.checkpoints.sealing import verify
from ark.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def checkpoint(step: int, size: int = 1000) -> dict[str, object]:
    return {"global_step": step, "state_dict": {"w": torch.full((size,), float(step))}}


def write(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / f"step-{step}.ckpt" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        write_checkpoint(checkpoint(step), path)
    return paths


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_the_file_before_keeps_the_name_that_it_is_given(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2, 3):
        write_checkpoint(checkpoint(step), last, previous)
        steps = [verify(path).step for path in (last, previous) if path.exists()]
        assert steps == ([step, step - 1] if step > 1 else [step])
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


def test_a_second_name_replaces_what_had_it(tmp_path: Path) -> None:
    one, two = write(tmp_path, 1, 2)
    for _ in range(2):  # the second time both are names of one file
        link(two, one)
        assert one.samefile(two)
    assert sorted(os.listdir(tmp_path)) == ["step-1.ckpt", "step-2.ckpt"]
    write_checkpoint(checkpoint(3), two)
    assert [verify(path).step for path in (one, two)] == [2, 3]


def test_a_disk_without_links_gets_a_copy(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    one, two = write(tmp_path, 1, 2)
    monkeypatch.setattr(os, "link", refuse)
    link(two, one)
    assert not one.samefile(two)
    assert verify(one).step == 2
    write_checkpoint(checkpoint(3), two, one)
    assert [verify(path).step for path in (one, two)] == [2, 3]


def test_the_newest_is_that_of_the_most_steps_then_the_last_written(tmp_path: Path) -> None:
    _, nine, ten = write(tmp_path, 2, 9, 10)
    os.utime(nine)  # copied later
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == ten
    write_checkpoint(checkpoint(10), tmp_path / "best-10.ckpt")
    os.utime(tmp_path / "best-10.ckpt", ns=(0, ten.stat().st_mtime_ns + 1))
    assert newest_intact(tmp_path, said.append).name == "best-10.ckpt"
    assert said == []


def test_damaged_ones_are_said_and_the_one_before_is_taken(tmp_path: Path) -> None:
    one, two, three, four = write(tmp_path, 1, 2, 3, 4)
    flip(four, 700)
    three.write_bytes(three.read_bytes()[:-5])
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == two
    assert len(said) == 2
    assert any(re.search(r"step-3\.ckpt is cut off.*going on from step-2\.ckpt", s) for s in said)
    assert any(re.search(r"step-4\.ckpt is damaged.*checksum.*step-2\.ckpt", s) for s in said)
    flip(two, 900)
    one.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no checkpoint in .* is intact") as error:
        newest_intact(tmp_path, said.append)
    assert all(path.name in str(error.value) for path in (one, two, three, four))
    with pytest.raises(ConfigError, match="no checkpoint in"):
        newest_intact(tmp_path / "none", said.append)


def test_a_file_without_a_seal_counts_and_gets_a_remark(tmp_path: Path) -> None:
    write(tmp_path, 5)
    torch.save(checkpoint(7), tmp_path / "copied.ckpt")
    said: list[str] = []
    assert newest_intact(tmp_path, said.append).name == "copied.ckpt"
    assert len(said) == 1
    assert "has no seal" in said[0]


def test_what_a_cut_off_write_left_is_said_and_removed(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    (tmp_path / ".last.ckpt.tmp").write_bytes(b"half")
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == path
    assert "last.ckpt: a write was cut off" in said[0]
    remove_halves(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_in_the_middle_leaves_the_old_one_alone(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(checkpoint(1) | {"unpicklable": lambda: None}, path)
    assert verify(path).step == 1
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 2 MB."""
    with disk_of("2m", tmp_path / "small") as folder:
        yield folder


def test_a_full_disk_is_said_and_the_old_checkpoint_stays(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    write_checkpoint(checkpoint(1, 200_000), path)  # 0.8 MB
    with pytest.raises(ConfigError, match="No space left on device") as error:
        write_checkpoint(checkpoint(2, 400_000), path, small_disk / "previous.ckpt")
    message = str(error.value)
    needed, free = (
        int(n.replace(",", ""))
        for n in re.search(r"needs ([\d,]+) .* ([\d,]+) are", message).groups()
    )
    write_checkpoint(checkpoint(2, 400_000), small_disk.parent / "elsewhere.ckpt")
    assert needed == (small_disk.parent / "elsewhere.ckpt").stat().st_size
    assert 1e6 < free < 1.3e6
    assert str(small_disk) in message
    assert os.listdir(small_disk) == ["last.ckpt"]
    assert verify(path).step == 1
    write_checkpoint(checkpoint(3, 200_000), path)  # what fits is written
    assert verify(path).step == 3


def test_a_limit_of_the_size_of_files_is_said(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"File too large: step-1\.ckpt needs"):
            write_checkpoint(checkpoint(2, 100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert verify(path).step == 1
    assert os.listdir(tmp_path) == [path.name]


def test_a_read_only_disk_is_found_before_the_start(small_disk: Path) -> None:
    check_writable(small_disk / "run" / "checkpoints")
    assert not (small_disk / "run").exists()
    (small_disk / "run").mkdir()
    check_writable(small_disk / "run")
    assert not list((small_disk / "run").iterdir())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in (small_disk, small_disk / "new"):
        with pytest.raises(ConfigError, match=rf"cannot write .*{folder}: Read-only file system"):
            check_writable(folder)


def test_a_folder_without_the_right_to_write_is_found_before_the_start(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from ark.checkpoints.integrity import check_writable
folder = Path({str(tmp_path)!r}) / "mine"
folder.mkdir(); folder.chmod(0o555)
for parent in [folder.parent, *folder.parent.parents][:3]: parent.chmod(0o755)
os.setuid(65534)
try: check_writable(folder)
except ValueError as error: print(error)
"""
    if os.getuid() != 0:
        pytest.skip("only root may become somebody else")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "mine: Permission denied; mend its rights" in done.stdout, done.stderr


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*(File exists|Not a directory)"):
        check_writable(tmp_path / "run")


# imports torch once and forks for each writer
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ark.checkpoints.integrity"])


def write_on_and_on(folder: Path, first: int, said: Connection) -> None:
    for step in itertools.count(first):
        write_checkpoint(checkpoint(step, 300_000), folder / "last.ckpt", folder / "previous.ckpt")
        said.send(step)


def killed_writer(folder: Path, first: int, after: float) -> int:
    """The last step that a writer, killed `after` seconds from its first write, said it wrote."""
    mine, theirs = CONTEXT.Pipe(duplex=False)
    writer = CONTEXT.Process(target=write_on_and_on, args=(folder, first, theirs))
    writer.start()
    theirs.close()
    step = mine.recv()
    time.sleep(after)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    with contextlib.suppress(EOFError):
        while True:
            step = mine.recv()
    return step


@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_of_writing_the_newest_is_intact(
    tmp_path: Path, kills: int
) -> None:
    draw = random.Random(kills)
    step, halves, last = 0, 0, tmp_path / "last.ckpt"
    for _ in range(kills):
        written = killed_writer(tmp_path, step + 1, draw.uniform(0, 0.05))
        halves += bool(list(tmp_path.glob(".*.tmp")))
        assert newest_intact(tmp_path, lambda text: None) == last
        step = int(torch.load(last, weights_only=True)["state_dict"]["w"].unique())
        assert step in (written, written + 1)  # + 1: killed before it could say so
        assert verify(last).step == step
        # the same step where it was killed between two renames
        assert step == 1 or verify(tmp_path / "previous.ckpt").step in (step, step - 1)
    assert halves > kills / 4, "few writes were cut off: the test tested nothing"
