"""What ties the student to the teacher, beside the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def carries_gradient(student: dict[str, Tensor]) -> bool:
    """Whether comparing these tensors could move the student: False under a full lock, and then
    the teacher's forward pass need not run."""
    return any(tensor.requires_grad for tensor in student.values())


def consistency_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Mean over the named tensors of their mean squared difference.

    Ark compares one embedding; Foundation X weighs the backbone's and the decoder's features
    half each (spec ark.md, Algorithm; foundation_x.md, Teacher).
    """
    terms = [F.mse_loss(student[name], teacher[name].detach()) for name in student]
    return sum(terms[1:], start=terms[0]) / len(terms)
