from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy.special import expit, softmax

from ark.consistency import (
    Agreement,
    carries_gradient,
    consistency_loss,
    cosine_distance,
    kl_divergence,
)
from ark.network import Network
from ark.teacher import Teacher
from ark.types import ConfigError
from toys import HEADS, SIZE, make_batch, make_task

NAMES = {
    "multilabel": ["pooled", "embedding", "logits"],
    "multiclass": ["pooled", "embedding", "logits"],
    "ordinal": ["pooled", "embedding", "logits"],
    "detection": ["backbone", "pyramid", "decoder", "logits"],
    "segmentation": ["backbone", "pyramid", "decoder", "logits"],
    "values": ["pooled", "embedding", "values"],
}
SHAPES = [(4, 3), (2, 5, 7), (2, 3, 4, 6)]


def make_network(*kinds: str) -> Network:
    torch.manual_seed(0)
    backbone = {"name": "test_efficientnet", "image_size": SIZE}
    return Network(backbone, {"width": 16}, [make_task(kind) for kind in kinds])


def shifted_teacher(network: Network) -> Teacher:
    teacher = Teacher(network)
    for parameter in teacher.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return teacher


def pair(shape: tuple[int, ...], scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return scale * torch.randn(shape), scale * torch.randn(shape)


def rows(tensor: torch.Tensor) -> np.ndarray:
    """(B, C, ...) -> (positions, C) float64."""
    return np.moveaxis(tensor.double().numpy(), 1, -1).reshape(-1, tensor.shape[1])


# -- distances ------------------------------------------------------------------------------


def test_is_the_mean_of_the_mean_squared_differences() -> None:
    torch.manual_seed(0)
    student = {"a": torch.randn(2, 5), "b": torch.randn(2, 3, 4, 4)}
    teacher = {name: torch.randn_like(value) for name, value in student.items()}
    expected = sum(((student[n] - teacher[n]) ** 2).sum() / student[n].numel() for n in "ab") / 2
    torch.testing.assert_close(consistency_loss(student, teacher), expected)


def test_tensors_of_one_name_share_its_weight() -> None:
    student = {"a/0": torch.ones(1, 2), "a/1": torch.ones(1, 2, 3, 3), "b": torch.ones(1, 2)}
    teacher = {"a/0": torch.zeros(1, 2), "a/1": torch.ones(1, 2, 3, 3), "b": torch.zeros(1, 2)}
    assert consistency_loss(student, teacher) == 0.75  # ((1 + 0) / 2 + 1) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_cosine_distance_is_that_of_numpy(shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    s, t = rows(student), rows(teacher)
    cosines = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert float(cosine_distance(student, teacher)) == pytest.approx((1 - cosines).mean(), rel=1e-5)


def test_cosine_of_a_dead_cell_has_a_bounded_gradient() -> None:
    student = torch.zeros(1, 8, requires_grad=True)
    cosine_distance(student, torch.ones(1, 8)).backward()
    assert student.grad.norm() < 1.1e4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("exclusive", [True, False])
def test_kl_is_that_of_numpy(shape: tuple[int, ...], temperature: float, exclusive: bool) -> None:
    student, teacher = pair(shape, scale=3)
    s, t = rows(student) / temperature, rows(teacher) / temperature
    if exclusive:
        q, p = softmax(s, axis=1), softmax(t, axis=1)
        each = (p * np.log(p / q)).sum(1)
    else:
        q, p = expit(s), expit(t)
        each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = float(kl_divergence(student, teacher, exclusive, temperature))
    assert found == pytest.approx(temperature**2 * each.mean(), rel=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_kl_of_extreme_logits_is_finite_and_of_equal_ones_zero(exclusive: bool) -> None:
    teacher = torch.tensor([[80.0, -80.0, 0.0]])
    student = (-teacher).requires_grad_()
    loss = kl_divergence(student, teacher, exclusive)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert kl_divergence(teacher, teacher, exclusive) == 0


def test_mse_of_vectors_of_length_one_is_the_cosine_distance_over_half_the_channels() -> None:
    vectors = (torch.nn.functional.normalize(x, dim=1) for x in pair((2, 64, 3, 3)))
    student, teacher = vectors
    mse = consistency_loss({"a": student}, {"a": teacher})
    torch.testing.assert_close(mse, 2 / 64 * cosine_distance(student, teacher))


# -- gradients ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", HEADS)
def test_each_term_of_each_head_teaches_the_student_and_not_the_teacher(kind: str) -> None:
    """Foundation X's published terms reached no weight, and its teacher built a graph (spec
    foundation_x.md, faults 2 and 4)."""
    network = make_network(kind).train()
    teacher, batch = shifted_teacher(network), make_batch(kind)
    head, mirror = network.head(batch.task), teacher.network.head(batch.task)
    features, output = network.run(batch.task, batch.images, batch.target)
    theirs = teacher.network.run(batch.task, batch.teacher_images, like=output)  # grad is enabled
    assert list(head.comparable()) == NAMES[kind]
    stem = next(network.backbone.model.parameters())
    for name in NAMES[kind]:
        for agreement in (Agreement(), Agreement(distance="cosine", logits="mse")):
            student = head.consistency(features, output, [name])
            target = mirror.consistency(*theirs, [name])
            assert not carries_gradient(target)
            loss = agreement.loss(head, student, target)
            (gradient,) = torch.autograd.grad(loss, [stem], retain_graph=True)
            assert loss > 0, (name, agreement)
            assert gradient.isfinite().all(), (name, agreement)
            assert gradient.any(), (name, agreement)
    assert not any(p.grad is not None or p.requires_grad for p in teacher.parameters())


# -- the options ----------------------------------------------------------------------------


def loss_under(agreement: Agreement, kind: str = "segmentation") -> float:
    network = make_network(kind).eval()
    teacher, batch = shifted_teacher(network), make_batch(kind)
    head = network.head(batch.task)
    agreement.check([head])
    values = [
        head.consistency(*net.run(batch.task, batch.images), agreement.names(head))
        for net in (network, teacher.network)
    ]
    return float(agreement.loss(head, *values).detach())


def test_by_default_the_papers_features_are_compared_by_mse() -> None:
    expected = {
        **dict.fromkeys(("multilabel", "multiclass", "ordinal", "values"), ("embedding",)),
        **dict.fromkeys(("detection", "segmentation"), ("backbone", "decoder")),
    }
    network = make_network(*HEADS).eval()
    heads = network.heads_by_key().values()
    Agreement().check(heads)
    assert {head.task.kind: Agreement().names(head) for head in heads} == expected
    mine, theirs = pair((2, 4))
    found = Agreement().loss(
        network.head("toy/multilabel"), {"embedding": mine}, {"embedding": theirs}
    )
    assert float(found) == pytest.approx(((mine - theirs) ** 2).mean().item())


def test_every_option_changes_the_loss() -> None:
    base = Agreement(compare={"segmentation": ["decoder", "logits"]})
    options = {
        "compare": {"segmentation": ["pyramid", "logits"]},
        "distance": "cosine",
        "logits": "mse",
        "temperature": 2.0,
    }
    assert set(options) == set(Agreement.__dataclass_fields__)
    for name, value in options.items():
        assert loss_under(replace(base, **{name: value})) != loss_under(base), name
    assert loss_under(replace(base, logits="cosine")) != loss_under(replace(base, logits="mse"))


@pytest.mark.parametrize(("kind", "exclusive"), [("multilabel", False), ("multiclass", True)])
def test_kl_follows_what_the_logits_mean(kind: str, exclusive: bool) -> None:
    head = make_network(kind).head(f"toy/{kind}")
    mine, theirs = pair((4, 3))
    found = Agreement(temperature=2).loss(head, {"logits": mine}, {"logits": theirs})
    torch.testing.assert_close(found, kl_divergence(mine, theirs, exclusive, 2))
    assert found != kl_divergence(mine, theirs, not exclusive, 2)


def test_a_tasks_key_goes_before_its_kind() -> None:
    head = make_network("multilabel").head("toy/multilabel")
    on = {"multilabel": ["logits"], "toy/multilabel": ["pooled", "embedding"]}
    assert Agreement(compare=on).names(head) == ["pooled", "embedding"]
    assert Agreement(compare={"multilabel": ["logits"]}).names(head) == ["logits"]
    assert list(Agreement(compare={"multilabel": []}).names(head)) == []


def test_only_what_is_asked_for_is_computed() -> None:
    network = make_network("segmentation")
    head, batch = network.head("toy/segmentation"), make_batch("segmentation")
    features, output = network.run(batch.task, batch.images)
    output.decoded = None
    assert list(head.consistency(features, output, ["logits"])) == ["logits"]
    with pytest.raises(ValueError, match="toy/multilabel: the features have no 'pooled'"):
        make_network("multilabel").head("toy/multilabel").consistency(features, None, ["pooled"])


BAD = {
    "no task": (
        {"compare": {"toy/boxes": ["logits"]}},
        r"compare: 'toy/boxes'; expected task keys .*'values",
    ),
    "no name": (
        {"compare": {"values": ["logits"]}},
        r"toy/values \(values\).*has \['pooled', 'embeddi",
    ),
    "twice": ({"compare": {"values": ["pooled", "pooled"]}}, "each to be named once"),
    "no such distance": ({"distance": "kl"}, r"distance: 'kl'; expected one of \['mse', 'cosine'"),
    "no such logits": ({"logits": "l1"}, "logits: 'l1'; expected one of"),
    "cold": ({"temperature": 0.0}, "temperature: 0.0; expected a number > 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_can_be_compared(case: str) -> None:
    options, message = BAD[case]
    network = make_network("multilabel", "values")
    with pytest.raises(ConfigError, match=message):
        Agreement(**options).check(network.heads_by_key().values())


IDLE = {
    "temperature": {"temperature": 2.0},
    "temperature of mse": {
        "compare": {"multilabel": ["logits"]},
        "logits": "mse",
        "temperature": 2.0,
    },
    "logits": {"logits": "mse"},
    "distance": {"compare": {"multilabel": ["logits"], "values": []}, "distance": "cosine"},
}


@pytest.mark.parametrize("case", IDLE)
def test_an_option_that_acts_on_nothing_is_warned_of(case: str, caplog) -> None:
    network = make_network("multilabel", "values")
    Agreement(**IDLE[case]).check(network.heads_by_key().values())
    assert [record.args[0] for record in caplog.records] == [case.split()[0]]
    caplog.clear()
    Agreement({"multilabel": ["logits", "pooled"]}, "cosine", "kl", 2.0).check(
        network.heads_by_key().values()
    )
    assert not caplog.records


def test_is_configured_by_nested_keys() -> None:
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--agreement", type=Agreement, default=Agreement())
    text = "agreement: {compare: {detection: [tokens, logits]}, distance: cosine, temperature: 2}"
    found = parser.instantiate_classes(parser.parse_string(text)).agreement
    assert found == Agreement({"detection": ["tokens", "logits"]}, "cosine", temperature=2.0)
    assert parser.instantiate_classes(parser.parse_args([])).agreement == Agreement()
