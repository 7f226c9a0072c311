from __future__ import annotations

import torch

from ark.consistency import carries_gradient, consistency_loss


def test_is_the_mean_of_the_mean_squared_differences() -> None:
    torch.manual_seed(0)
    student = {"a": torch.randn(2, 5), "b": torch.randn(2, 3, 4, 4)}
    teacher = {name: torch.randn_like(value) for name, value in student.items()}
    expected = sum(((student[n] - teacher[n]) ** 2).sum() / student[n].numel() for n in "ab") / 2
    torch.testing.assert_close(consistency_loss(student, teacher), expected)


def test_only_the_student_gets_a_gradient() -> None:
    student = {"a": torch.ones(2, requires_grad=True)}
    teacher = {"a": torch.zeros(2, requires_grad=True)}
    consistency_loss(student, teacher).backward()
    assert student["a"].grad.abs().sum() > 0
    assert teacher["a"].grad is None


def test_frozen_features_carry_none() -> None:
    assert not carries_gradient({"a": torch.ones(1)})
    assert not carries_gradient({})
    assert carries_gradient({"a": torch.ones(1), "b": torch.ones(1, requires_grad=True)})
