"""What ties the student to the teacher, beside the labels.

Shape letters: see `ark.types`. Tensors that are compared have their channels in axis 1; a position
is an index into all other axes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ark.head import Head
from ark.types import KINDS, ConfigError

log = logging.getLogger("ark")
SHORTEST = 1e-4  # below this length a vector's gradient under "cosine" grows no further


def carries_gradient(student: dict[str, Tensor]) -> bool:
    """Whether comparing these tensors could move the student: False under a full lock, and then
    the teacher's forward pass need not run."""
    return any(tensor.requires_grad for tensor in student.values())


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the angle between the two vectors of a position, the mean over positions."""
    student, teacher = student.float(), teacher.float()
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=SHORTEST).mean()


def kl_divergence(
    student: Tensor, teacher: Tensor, exclusive: bool, temperature: float = 1.0
) -> Tensor:
    """T^2 KL(teacher || student) of the distributions that logits / T give; the factor keeps the
    gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
        exclusive: True: a softmax over the channels, the sum over them and the mean over positions.
            False: each logit is a yes or no of its own, the mean over all of them.
    """
    mine, theirs = student.float() / temperature, teacher.float() / temperature
    if exclusive:
        mine, theirs = mine.log_softmax(dim=1), theirs.log_softmax(dim=1)
        each = (theirs.exp() * (theirs - mine)).sum(dim=1)
    else:
        yes = F.logsigmoid(theirs) - F.logsigmoid(mine)
        no = F.logsigmoid(-theirs) - F.logsigmoid(-mine)
        each = theirs.sigmoid() * yes + (-theirs).sigmoid() * no
    return temperature**2 * each.mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cosine": cosine_distance,
}
Distance = Callable[[str, Tensor, Tensor], Tensor]  # name, student's, teacher's -> scalar


def consistency_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    distance: Distance = lambda name, mine, theirs: F.mse_loss(mine, theirs),
) -> Tensor:
    """Mean over the names of the distance, by default the mean squared difference. Tensors of one
    name, `pyramid/0`, `pyramid/1`, ..., share its weight.

    Ark compares one embedding; Foundation X weighs the backbone's and the decoder's features
    half each (spec ark.md, Algorithm; foundation_x.md, Teacher).
    """
    terms: dict[str, list[Tensor]] = {}
    for key, mine in student.items():
        name = key.partition("/")[0]
        terms.setdefault(name, []).append(distance(name, mine, teacher[key].detach()))
    return _mean([_mean(levels) for levels in terms.values()])


@dataclass(frozen=True)
class Agreement:
    """What student and teacher are compared on, and how far apart they are.

    "mse" is the mean over all elements, as the papers write it. On vectors of length 1, which
    segmentation compares, it is small by construction: |s - t|^2 = 2 (1 - cos), so that over C
    channels mse = 2 / C times "cosine". With C = 1024 a weight of 0.5 pulls like one of 0.001 on
    "cosine".

    Args:
        compare: by task key or task kind (a key goes before its kind) names of
            `Head.comparable`, such as {segmentation: [pyramid, logits]}; [] compares nothing.
            Tasks that are not named here: `Head.compared`, the papers' choice.
        distance: of features, "mse" or "cosine".
        logits: of the name "logits", "kl" (see `kl_divergence`), "mse" or "cosine".
        temperature: of "kl".

    Raises:
        ConfigError: a value outside these.
    """

    compare: dict[str, list[str]] = field(default_factory=dict)
    distance: Literal["mse", "cosine"] = "mse"
    logits: Literal["kl", "mse", "cosine"] = "kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("distance", [*DISTANCES]), ("logits", ["kl", *DISTANCES])):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"model.agreement.{name}: {getattr(self, name)!r}; expected one of {choices}"
                )
        if not self.temperature > 0:
            raise ConfigError(
                f"model.agreement.temperature: {self.temperature}; expected a number > 0"
            )

    def names(self, head: Head) -> Sequence[str]:
        """What is compared of this head: for `Head.consistency`."""
        task = head.task
        return self.compare.get(task.key, self.compare.get(task.kind, head.compared))

    def loss(self, head: Head, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """`consistency_loss` with these distances; the teacher gets no gradient.

        Args:
            student, teacher: of `Head.consistency`, with at least one tensor.
        """

        def distance(name: str, mine: Tensor, theirs: Tensor) -> Tensor:
            kind = self.logits if name == "logits" else self.distance
            if kind == "kl":
                return kl_divergence(mine, theirs, head.exclusive, self.temperature)
            return DISTANCES[kind](mine, theirs)

        return consistency_loss(student, teacher, distance)

    def check(self, heads: Iterable[Head]) -> None:
        """Before the first step. Warns of options that have nothing to act on, which is no error:
        of a recipe's tasks a run may train one alone.

        Raises:
            ConfigError: `compare` names no task of the run and no kind, or a head lacks a name.
        """
        heads = list(heads)
        keys = [*KINDS, *(head.task.key for head in heads)]
        if unknown := [key for key in self.compare if key not in keys]:
            raise ConfigError(
                f"model.agreement.compare: {unknown[0]!r}; expected task keys or kinds of {keys}"
            )
        for head in heads:
            names, offered = self.names(head), [*head.comparable()]
            if len({*names}) < len(names) or not {*names} <= {*offered}:
                raise ConfigError(
                    f"model.agreement.compare: the head of task {head.task.key} "
                    f"({head.task.kind}) cannot be compared on {list(names)}; it has {offered}, "
                    "each to be named once"
                )
        self._warn_of_idle_options({name for head in heads for name in self.names(head)})

    def _warn_of_idle_options(self, compared: set[str]) -> None:
        by_kl = self.logits == "kl" and "logits" in compared
        for name, acts in (
            ("distance", bool(compared - {"logits"})),
            ("logits", "logits" in compared),
            ("temperature", by_kl),
        ):
            value, default = getattr(self, name), Agreement.__dataclass_fields__[name].default
            if value != default and not acts:
                log.warning(
                    "model.agreement.%s: %s does nothing: of these tasks only %s are compared",
                    *(name, value, sorted(compared)),
                )


def _mean(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0]) / len(terms)
