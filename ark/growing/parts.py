"""Tensors that fit as they are, and those of which some rows fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ark.class_rows import ClassRows
from ark.growing.table import Row


@dataclass(frozen=True)
class Taken:
    """What one tensor takes.

    Args:
        value: of the shape of the tensor that takes it.
        rows: (rows of axis 0,) bool: which of them; None: all of it.
    """

    value: Tensor
    rows: Tensor | None = None

    @torch.no_grad()
    def put(self, tensor: Tensor) -> None:
        """Writes it in place; what is not taken stays."""
        if self.rows is None:
            tensor.copy_(self.value)
        else:
            tensor[self.rows.to(tensor.device)] = self.value[self.rows].to(tensor)


Match = tuple[Row, dict[str, Taken]]  # names of tensors below the part
Tensors = Mapping[str, Tensor]


def take_or_leave(part: str, mine: Tensors, theirs: Tensors, prefix: str = "") -> Match:
    """The whole part, or nothing of it where tensors or shapes differ.

    Args:
        prefix: of the names in the result.
    """
    if why := misfit(mine, theirs):
        return all_new(part, mine, theirs, why)
    return Row(part, "taken", len(mine)), {prefix + k: Taken(theirs[k]) for k in mine}


def all_new(part: str, mine: Tensors, theirs: Tensors, why: str) -> Match:
    return Row(part, "new", new=len(mine), dropped=len(theirs), note=why), {}


def misfit(mine: Tensors, theirs: Tensors, but: Sequence[str] = ()) -> str:
    """The first difference in names or shapes, in words; "" if there is none.

    Args:
        but: names whose shapes may differ.
    """
    if only := sorted(mine.keys() - theirs.keys()):
        return f"has no {only[0]} there"
    if only := sorted(theirs.keys() - mine.keys()):
        return f"has {only[0]} there"
    for name, tensor in mine.items():
        if name not in but and tensor.shape != theirs[name].shape:
            return f"{name} is {shape(tensor)} here, {shape(theirs[name])} there"
    return ""


def shape(tensor: Tensor) -> str:
    """`3 x 64 x 3 x 3`"""
    return " x ".join(map(str, tensor.shape)) or "a number"


def by_class(
    mine: Tensor, theirs: Tensor, rows: ClassRows, new: Sequence[str], old: Sequence[str]
) -> Taken | None:
    """The rows of the classes that both have, and those of no class; None where they do not fit.

    Args:
        mine, theirs: (rows of the new classes, ...) and (rows of the old ones, ...).
    """
    here, there = rows.count(len(new)), rows.count(len(old))
    if (len(mine), len(theirs)) != (here, there) or mine.shape[1:] != theirs.shape[1:]:
        return None
    value, taken = mine.clone(), torch.zeros(here, dtype=torch.bool)
    pairs = [(rows.of_no_class(len(new)), rows.of_no_class(len(old)))]
    pairs += [
        (rows.of(k, len(new)), rows.of(old.index(name), len(old)))
        for k, name in enumerate(new)
        if name in old
    ]
    for to, come_from in pairs:
        value[to] = theirs[come_from].to(value)
        taken[to] = True
    return Taken(value, taken)
