from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from ark.checkpoints.sealing import DamagedCheckpoint, Seal, read_seal, save_sealed, verify


def make_checkpoint(step: int = 12, size: int = 5000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    state = {"w": torch.randn(size, generator=generator), "n": torch.tensor(step)}
    return {"global_step": step, "state_dict": state, "empty": torch.zeros(0)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.ckpt"
    with path.open("wb") as file:
        save_sealed(make_checkpoint(), file)
    return path


def test_a_sealed_file_is_what_torch_save_writes_and_says_what_it_is(path: Path) -> None:
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["state_dict"]["w"], make_checkpoint()["state_dict"]["w"])
    assert found["global_step"] == 12
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(mapped["state_dict"]["w"], found["state_dict"]["w"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    data = path.read_bytes()
    digest = xxhash.xxh3_128(data[:-32]).hexdigest()
    text = f"ark checkpoint: step {12:012d}, {len(data):016d} bytes, xxh3_128 {digest}"
    assert comment == text.encode()
    assert verify(path) == read_seal(path) == Seal(12, len(data), digest)


def test_any_flipped_bit_is_detected_and_torch_alone_does_not(path: Path) -> None:
    data = path.read_bytes()
    draw = random.Random(0)
    ends = [*range(64), *range(len(data) - 400, len(data))]
    unseen = 0
    for at in (*ends, *draw.sample(range(len(data)), 400)):
        broken = bytearray(data)
        broken[at] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(DamagedCheckpoint, match=r"x\.ckpt is (cut off|damaged)"):
            verify(path)
        try:
            torch.load(path, weights_only=True)
            unseen += 1
        except Exception:
            pass
    assert unseen > 400  # why there is a seal


def test_any_truncation_and_anything_appended_is_detected(path: Path) -> None:
    data = path.read_bytes()
    draw = random.Random(1)
    for size in (0, 1, 21, 22, 23, *range(len(data) - 200, len(data)), *draw.sample(
        range(len(data)), 200
    )):  # fmt: skip
        path.write_bytes(data[:size])
        with pytest.raises(DamagedCheckpoint, match=f"{size:,}"):
            verify(path)
    for more in (b"\0", b"PK", bytes(100), data):
        path.write_bytes(data + more)
        with pytest.raises(DamagedCheckpoint):
            verify(path)


def test_lost_and_exchanged_blocks_are_detected(path: Path) -> None:
    data = path.read_bytes()
    for start in range(0, len(data) - 8192, 4096):
        zeros, swapped = bytearray(data), bytearray(data)
        zeros[start : start + 4096] = bytes(4096)
        swapped[start : start + 8192] = data[start + 4096 : start + 8192] + data[start:][:4096]
        for broken in (zeros, swapped):
            path.write_bytes(broken)
            with pytest.raises(DamagedCheckpoint, match="checksum"):
                verify(path)


def test_a_file_of_plain_torch_save_has_no_seal_and_is_checked_by_its_archive(path: Path) -> None:
    torch.save(make_checkpoint(), path)
    assert verify(path) is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # within the weights
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="damaged"):
        verify(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(10_000)])
def test_foreign_files_are_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=f"its {len(content):,} bytes do not end as one"):
        verify(path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"none\.ckpt cannot be read: No such file"):
        verify(tmp_path / "none.ckpt")


@pytest.mark.parametrize("size", [0, 1, 5, 1000, 3_000_000])
def test_sizes_of_writes_do_not_matter(tmp_path: Path, size: int) -> None:
    path = tmp_path / "y.ckpt"
    with path.open("wb") as file:
        needed, error = save_sealed(make_checkpoint(size=size), file)
    assert error is None
    assert needed == path.stat().st_size
    assert verify(path) is not None
    assert torch.load(path, weights_only=True)["state_dict"]["w"].shape == (size,)
