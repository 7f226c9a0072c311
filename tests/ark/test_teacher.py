from __future__ import annotations

import pytest
import torch

from ark.network import Network
from ark.teacher import Teacher
from toys import SIZE, make_task


@pytest.fixture
def student() -> Network:
    torch.manual_seed(0)
    backbone = {"name": "test_efficientnet", "image_size": SIZE}
    return Network(backbone, {"width": 16}, [make_task("multilabel")])


def test_starts_equal_and_follows_parameters_and_buffers(student: Network) -> None:
    teacher = Teacher(student)
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    for value in student.state_dict().values():
        value.add_(1)
    teacher.update(student, 0.75)
    for name, value in teacher.network.state_dict().items():
        now = student.state_dict()[name]
        if value.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * now
            torch.testing.assert_close(value, expected, msg=name)
        else:
            assert torch.equal(value, now), name
    assert any("running_mean" in name for name in before), "no BatchNorm: the test proves nothing"


def test_cannot_be_trained(student: Network) -> None:
    teacher = Teacher(student).train()
    teacher.network.train(False)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    assert not teacher.network.features(images, "all").pooled.requires_grad
