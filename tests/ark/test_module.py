from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch

from ark.balance import GradNorm
from ark.consistency import consistency_loss
from ark.cycle import Cycle, Phase
from ark.module import ArkModule, BackboneConfig, ProjectorConfig
from ark.schedules import Constant, Linear
from ark.tracking.numbers import StepNumbers
from ark.types import ConfigError
from toys import HEADS, SIZE, make_batch, make_task


def make_module(*kinds: str, lock: list[str] | None = None, **options) -> ArkModule:
    tasks = [make_task(kind) for kind in kinds]
    phases = [Phase(task=task.key, lock=lock or [], steps=2) for task in tasks]
    cycle = Cycle(phases, [2] * len(phases), cycles=2)
    options.setdefault("backbone", BackboneConfig("test_efficientnet"))
    return ArkModule(tasks, cycle, image_size=SIZE, **options)


def shift_teacher(module: ArkModule) -> None:
    """Student and teacher start equal; a difference makes the consistency loss say something."""
    for parameter in module.teacher.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_is_task_and_consistency_by_their_weights(kind: str) -> None:
    module = make_module(kind, consistency=Constant(0.3)).eval()
    shift_teacher(module)
    batch, at = make_batch(kind), module.cycle.at(0)
    result = module.compute(batch, at)
    head = module.network.head(batch.task)
    features = module.network.features(batch.images, head.reads)
    output = head(features, batch.target)
    task = sum(head.loss(output, batch.target).values())
    student = head.consistency(features, output)
    agreement = consistency_loss(student, module.teacher_targets(batch, None))
    torch.testing.assert_close(result.total, 0.7 * task + 0.3 * agreement)
    torch.testing.assert_close(result.numbers["consistency"], agreement.detach())
    assert agreement > 0


@pytest.mark.parametrize("kind", HEADS)
def test_consistency_alone_gives_the_student_a_gradient(kind: str) -> None:
    """The published Foundation X compared a copy, so the term reached no weight (fault 2)."""
    module = make_module(kind, consistency=Constant(1.0)).train()
    shift_teacher(module)
    batch = make_batch(kind)
    module.compute(batch, module.cycle.at(0)).total.backward()
    moved = [n for n, p in module.network.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("backbone.") for name in moved)
    assert not any(p.grad is not None for p in module.teacher.parameters())
    if kind in ("detection", "segmentation"):
        assert any(name.startswith("heads.") for name in moved), "the decoder's half is missing"


@pytest.mark.parametrize("kind", HEADS)
def test_the_teacher_sees_its_own_view(kind: str) -> None:
    module = make_module(kind).eval()
    batch = make_batch(kind)
    before = module.teacher_targets(batch, None)
    batch.teacher_images = 255 - batch.teacher_images
    after = module.teacher_targets(batch, None)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_under_a_full_lock_the_teacher_does_not_run(monkeypatch) -> None:
    module = make_module("multilabel", lock=["backbone"])
    module.locks.apply([module.network.backbone])
    monkeypatch.setattr(module, "teacher_targets", lambda *_: pytest.fail("it ran"))
    result = module.compute(make_batch("multilabel"), module.cycle.at(0))
    assert "consistency" not in result.numbers
    result.total.backward()
    assert module.network.head("toy/multilabel").linear.weight.grad.any()


def test_weight_zero_is_plain_supervised_training(monkeypatch) -> None:
    module = make_module("segmentation", consistency=Constant(0.0))
    monkeypatch.setattr(module, "teacher_targets", lambda *_: pytest.fail("it ran"))
    numbers = module.compute(make_batch("segmentation"), module.cycle.at(0)).numbers
    losses = [value for name, value in numbers.items() if name != "loss"]
    torch.testing.assert_close(numbers["loss"], sum(losses))


@pytest.mark.parametrize(
    ("when", "updates"), [("step", [0, 1, 2, 3]), ("phase", [1, 3]), ("cycle", [3])]
)
def test_the_teacher_moves_where_the_plan_says(when: str, updates: list[int], monkeypatch) -> None:
    module = make_module("multilabel", "multiclass", teacher_update=when)
    moved = []
    monkeypatch.setattr(module.teacher, "update", lambda network, m: moved.append(at.step))
    for step in range(4):
        at = module.cycle.at(step)
        module.update_teacher(at)
    assert moved == updates


def test_same_seed_same_start_and_an_equal_teacher() -> None:
    one, other = (make_module(*HEADS, projector=ProjectorConfig(8), seed=3) for _ in range(2))
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name
        assert torch.equal(value, one.teacher.network.state_dict()[name]), name


def test_the_optimiser_holds_the_student_and_not_the_teacher() -> None:
    module = make_module(*HEADS, lr_scale={"backbone": 0.1})
    groups = module.configure_optimizers()["optimizer"].param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in module.network.parameters()}
    assert {group["initial_lr"] for group in groups} == {1e-3, 1e-4}


def test_a_lock_that_names_nothing_fails_before_training() -> None:
    with pytest.raises(ConfigError, match="'neck' names no module"):
        make_module("multilabel", lock=["neck"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency": Constant(2.0)}, r"model.consistency: .* is 2 at step 0 of 4"),
        ({"momentum": Linear(0.9, 1.5)}, r"model.momentum: .* is 1.05 at step 1 of 4"),
        ({"momentum_by_length": True}, "every step is as long as any other"),
        ({"balance": partial(GradNorm, layer="projector")}, "'projector' names no module with"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_module("multilabel", **options)


def test_a_lock_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="'projector', which has no parameters"):
        make_module("multilabel", lock=["projector"])


def test_numbers_that_only_some_batches_have_are_logged() -> None:
    """Of pseudo-labels, where nothing was to be filled in."""
    logger = mock.Mock()
    loss, filled = {"loss": torch.tensor(1.0)}, {"filled": torch.tensor(0.5)}
    numbers = StepNumbers()
    for task, found in {"a": [loss | filled, loss], "b": [loss, loss | filled]}.items():
        for micro in found:
            numbers.add(task, micro)
    numbers.log([logger], 3)
    numbers.log([logger], 4)  # nothing was added since
    means = {f"train/{t}/{n}": v for t in "ab" for n, v in (("loss", 1), ("filled", 0.25))}
    logger.log_metrics.assert_called_once_with(means, 3)
