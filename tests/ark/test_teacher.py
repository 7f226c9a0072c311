from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ark.cycle import Cycle, Phase, Unit
from ark.network import Network
from ark.teacher import Teacher, by_length, steps_averaged
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


# -- momentum by the length of a phase ------------------------------------------------------


def test_two_short_phases_weigh_as_one_long_one(student: Network) -> None:
    """While the student stands still, only how many steps there were may count."""
    cut, whole = Teacher(student), Teacher(student)
    for parameter in student.parameters():
        parameter.data.add_(1)
    for steps in (3, 17):
        cut.update(student, by_length(0.8, steps, 10))
    whole.update(student, by_length(0.8, 20, 10))
    torch.testing.assert_close(cut.network.state_dict(), whole.network.state_dict())
    assert by_length(0.8, 10, 10) == 0.8
    assert by_length(0.8, 1, 10) > by_length(0.8, 20, 10)  # few steps move the teacher little


def test_the_momenta_of_a_run_multiply_to_what_they_would_without() -> None:
    lengths = [3, 17, 40, 1]
    momenta = [by_length(0.8, n, sum(lengths) / len(lengths)) for n in lengths]
    assert math.prod(momenta) == pytest.approx(0.8 ** len(lengths))
    assert by_length(0.0, 3, 10) == 0.0
    assert by_length(1.0, 3, 10) == 1.0


PHASES = [
    Phase("a/x", ["backbone"], steps=2), Phase("a/x", steps=3), Phase("b/x", steps=1),
    Phase("c/x", steps=4, last_cycle=1),
]  # fmt: skip


@pytest.mark.parametrize("unit", ["step", "phase", "pass", "cycle"])
def test_updates_stand_for_the_steps_since_the_one_before(unit: Unit) -> None:
    cycle = Cycle(PHASES, [2, 3, 1, 4], cycles=2)
    updates = [s for s in range(cycle.total_steps) if cycle.at(s).ends(unit)]
    expected = [b - a for a, b in pairwise([-1, *updates])]
    assert [steps_averaged(cycle, cycle.at(s), unit) for s in updates] == expected
    assert len(updates) == cycle.total(unit)
    assert sum(expected) == cycle.total_steps


def test_runs_without_a_graph_where_gradients_are_on(student: Network) -> None:
    """Foundation X's published teacher built one (spec foundation_x.md, fault 4)."""
    teacher = Teacher(student)
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    assert torch.is_grad_enabled()
    features, output = teacher.network.run("toy/multilabel", images)
    assert not features.embedding.requires_grad
    assert not output.requires_grad


def test_its_running_statistics_follow_those_of_a_student_that_trains(student: Network) -> None:
    """Published teachers evaluated with the statistics of their start (fault 3)."""
    teacher, start = Teacher(student), Teacher(student)
    student.train()
    student.features(torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8), "all")
    teacher.update(student, 0.0)
    moved = 0
    for name, value in teacher.network.named_buffers():
        assert torch.equal(value, student.get_buffer(name)), name
        moved += not torch.equal(value, start.network.get_buffer(name))
    assert moved > 0
