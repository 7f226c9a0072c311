from __future__ import annotations

import pytest
import torch

from ark.checkpoint import load_network, save_networks
from ark.network import Network
from ark.types import ConfigError
from toys import SIZE, make_batch, make_task


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


def test_what_is_no_checkpoint_says_so(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.safetensors is missing; expected the folder"):
        load_network(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="not written by `ark fit`"):
        load_network(tmp_path / "other.ckpt")
