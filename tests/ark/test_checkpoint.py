from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ark.checkpoint import load_network, save_networks
from ark.network import Network
from ark.types import ConfigError
from toys import HEADS, SIZE, make_batch, make_task


def make_network(seed: int) -> Network:
    torch.manual_seed(seed)
    tasks = [make_task("multilabel"), make_task("segmentation")]
    return Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)


def assert_same(one: Network, other: Network) -> None:
    images = make_batch("multilabel").images
    for key, prediction in one.eval()(images).items():
        assert torch.equal(prediction.probabilities, other(images)[key].probabilities)


def test_student_and_teacher_come_back_as_they_were(tmp_path) -> None:
    student, teacher = make_network(0), make_network(1)
    save_networks(tmp_path / "model", student=student, teacher=teacher)
    assert_same(teacher, load_network(tmp_path))
    assert_same(student, load_network(tmp_path / "model", "student"))


def test_a_training_checkpoint_can_be_loaded(tmp_path) -> None:
    student, teacher = make_network(0), make_network(1)
    state = {f"network.{k}": v for k, v in student.state_dict().items()}
    state |= {f"teacher.network.{k}": v for k, v in teacher.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "ark": {"architecture": student.architecture}}, path)
    assert_same(teacher, load_network(path))
    assert_same(student, load_network(path, "student"))


def test_a_saved_network_needs_no_training_stack(tmp_path) -> None:
    """A hub user has neither; timm and mmdet use some of them where they are installed."""
    tasks = [make_task(kind) for kind in HEADS]
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, tasks)
    save_networks(tmp_path, teacher=network)
    program = f"""
import sys
for name in ("pytorch_lightning", "lightning", "webdataset", "albumentations", "wandb"):
    sys.modules[name] = None  # importing it now fails
import torch
from ark.checkpoint import load_network
found = load_network({str(tmp_path)!r})(torch.rand(1, 3, {SIZE}, {SIZE}))
assert len(found) == {len(HEADS)}, found
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["teacher.safetensors", "architecture.json"])
def test_a_damaged_file_is_named(tmp_path, name: str) -> None:
    save_networks(tmp_path, teacher=make_network(0))
    (tmp_path / name).write_bytes(b"not what it was")
    with pytest.raises(ConfigError, match="is damaged"):
        load_network(tmp_path)
    junk = tmp_path / "junk.ckpt"
    junk.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cut off, damaged or none"):
        load_network(junk)


def test_what_is_no_checkpoint_says_so(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.safetensors is missing; expected the folder"):
        load_network(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="not written by `ark fit`"):
        load_network(tmp_path / "other.ckpt")
