from __future__ import annotations

import pytest
import torch

from ark.cycle import Phase
from ark.locks import Locks, check_phase, locked_modules
from ark.network import Network
from ark.types import ConfigError
from toys import SIZE, make_batch, make_task


def _step(network: Network, optimizer: torch.optim.Optimizer) -> None:
    batch = make_batch("multilabel")
    head = network.head(batch.task)
    loss = head.loss(head(network.features(batch.images, head.reads)), batch.target)
    optimizer.zero_grad()
    sum(loss.values()).backward()
    optimizer.step()


def _moved(before: dict[str, torch.Tensor], network: Network) -> set[str]:
    now = network.state_dict()
    return {name for name in before if not torch.equal(before[name], now[name])}


def test_locked_parts_stand_still_and_released_parts_move() -> None:
    torch.manual_seed(0)
    tasks = [make_task("multilabel"), make_task("multiclass")]
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)
    # momentum and decay: both would move a parameter whose gradient is zero instead of None
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    locks = Locks(network)

    def moved_by_a_step(*locked: torch.nn.Module) -> set[str]:
        locks.apply(locked)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        _step(network, optimizer)
        return _moved(before, network)

    def names(prefix: str) -> set[str]:
        return {name for name, _ in network.named_parameters() if name.startswith(prefix)}

    free = moved_by_a_step()
    assert any(name.startswith("backbone.") for name in free)
    assert any("running_mean" in name for name in free)
    assert not free & names("heads.toy/multiclass"), "an unused head moved"

    locked = moved_by_a_step(network.backbone)
    assert locked == names("projector.") | names("heads.toy/multilabel")
    assert not network.backbone.training
    assert network.heads.training

    only_projector = moved_by_a_step(network.backbone, network.heads)
    assert only_projector == names("projector.")

    again = moved_by_a_step()
    assert again == free


def test_a_parameter_that_never_trains_stays_so() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    network[0].bias.requires_grad_(False)
    locks = Locks(network)
    locks.apply([network[0]])
    locks.apply([])
    assert not network[0].bias.requires_grad
    assert network[0].weight.requires_grad


def tasks_with_one_decoder() -> list:
    """Two segmentation tasks that share a decoder, and a classification task."""
    masks = [make_task("segmentation", dataset) for dataset in ("a", "b")]
    for task in masks:
        task.head["init_args"] = {"shared": "masks"}
    return [*masks, make_task("multilabel")]


@pytest.mark.parametrize(
    ("phase", "free"),
    [
        (Phase("a/segmentation", train=["head"]), {"heads.a/segmentation"}),
        (
            Phase("a/segmentation", train=["head", "shared.masks"]),
            {"heads.a/segmentation", "shared.masks"},
        ),
        (
            Phase("toy/multilabel", train=["head", "backbone.model.blocks.1"]),
            {"heads.toy/multilabel", "backbone.model.blocks.1"},
        ),
        (
            Phase(tasks=["a/segmentation", "b/segmentation"], train=["head"]),
            {"heads.a/segmentation", "heads.b/segmentation"},
        ),
        (
            Phase(tasks=["a/segmentation", "b/segmentation"], lock=["head", "backbone"]),
            {"heads.toy/multilabel", "projector", "shared"},
        ),
        (
            Phase("a/segmentation", lock=["backbone", "shared.masks"]),
            {"heads", "projector"},
        ),
    ],
    ids=lambda value: value.state if isinstance(value, Phase) else "",
)
def test_what_a_phase_leaves_free(phase: Phase, free: set[str]) -> None:
    tasks = tasks_with_one_decoder()
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)
    check_phase(network, phase)
    Locks(network).apply(locked_modules(network, phase))
    for name, parameter in network.named_parameters():
        expected = any(name.startswith(f"{part}.") for part in free)
        assert parameter.requires_grad == expected, name
    for name, module in network.named_modules():
        if not list(module.children()):
            expected = any(f"{name}.".startswith(f"{part}.") for part in free)
            assert module.training == expected, name


def test_a_phase_that_trains_nothing_its_task_uses_is_an_error() -> None:
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8},
                      tasks_with_one_decoder())  # fmt: skip
    with pytest.raises(ConfigError, match=r"of b/segmentation .* leaves nothing to train"):
        check_phase(network, Phase("b/segmentation", train=["projector"]))
    both = Phase(tasks=["toy/multilabel", "b/segmentation"], train=["projector"])
    with pytest.raises(ConfigError, match="of b/segmentation"):
        check_phase(network, both)


def test_a_parameter_that_cannot_be_locked_alone_is_an_error() -> None:
    network = Network({"name": "test_vit2", "image_size": SIZE}, None, [make_task("multilabel")])
    with pytest.raises(ConfigError, match=r"backbone\.model\.\w+ lies beside these"):
        check_phase(network, Phase("toy/multilabel", train=["head", "backbone.model.blocks"]))
