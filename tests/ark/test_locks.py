from __future__ import annotations

import torch

from ark.locks import Locks
from ark.network import Network
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
