"""Shared parts and guides: what ties heads of one network together."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from ark.checkpoint import load_network, save_networks
from ark.locks import Locks
from ark.network import Network
from ark.teacher import Teacher
from ark.types import ConfigError, Features, Target
from heads.classification import ClassificationHead
from toys import SIZE, make_batch, make_task

BACKBONE = {"name": "test_efficientnet", "image_size": SIZE}
SHARING = f"{__name__}.SharingHead"


class SharingHead(ClassificationHead):
    """Looks at the embedding through a layer that all such heads share."""

    def __init__(self, task, features, width: int = 6) -> None:
        super().__init__(task, features)
        self.share("layer", {"width": width}, lambda: nn.Linear(features.embedding, width))
        self.linear = nn.Linear(width, len(task.classes))

    def forward(self, features: Features, target: Target | None = None, like: Any = None):
        return self.linear(self.shared("layer")(features.embedding))


class GuidedHead(ClassificationHead):
    """Writes down what its guide told it."""

    guide = "detection"

    def forward(self, features: Features, target: Target | None = None, like: Any = None):
        self.told = features.regions
        return super().forward(features)


def make_network(*names: str, **options: Any) -> Network:
    torch.manual_seed(0)
    config = {"class_path": SHARING, "init_args": options}
    tasks = [
        dataclasses.replace(make_task("multilabel", dataset=name), head=config) for name in names
    ]
    return Network(BACKBONE, None, tasks)


def test_a_shared_part_is_in_the_network_once_and_every_head_uses_it(tmp_path) -> None:
    network = make_network("a", "b")
    assert [n for n in network.state_dict() if "layer" in n] == [
        "shared.layer.weight",
        "shared.layer.bias",
    ]
    assert network.head("a/multilabel").shared("layer") is network.shared["layer"]
    for name in "ab":
        network.zero_grad()
        batch = make_batch("multilabel", dataset=name)
        _, output = network.run(batch.task, batch.images)
        output.sum().backward()
        assert network.shared["layer"].weight.grad.any()
    assert network.shared["layer"] in network.used_by("a/multilabel")
    save_networks(tmp_path, teacher=network)
    again = load_network(tmp_path)
    images = make_batch("multilabel").images
    expected = network.eval()(images)["b/multilabel"].probabilities
    torch.testing.assert_close(again(images)["b/multilabel"].probabilities, expected)


def test_copies_keep_to_themselves_and_the_average_counts_it_once() -> None:
    network = make_network("a", "b")
    teacher = Teacher(network)
    theirs = teacher.network
    assert theirs.head("a/multilabel").shared("layer") is theirs.shared["layer"]
    assert theirs.shared["layer"] is not network.shared["layer"]
    before = theirs.shared["layer"].weight.clone()
    with torch.no_grad():
        network.shared["layer"].weight += 1
    teacher.update(network, 0.9)
    torch.testing.assert_close(theirs.shared["layer"].weight, before + 0.1)
    assert copy.deepcopy(network).shared["layer"] is not network.shared["layer"]


def test_its_start_does_not_depend_on_who_asks_first() -> None:
    one, other = make_network("a", "b"), make_network("b", "c", "a")
    assert torch.equal(one.shared["layer"].weight, other.shared["layer"].weight)


def test_a_lock_names_it() -> None:
    network = make_network("a")
    Locks(network).apply([network.part("shared.layer", "a/multilabel")])
    assert not network.shared["layer"].weight.requires_grad
    with pytest.raises(ConfigError, match=r"'shared.decoder' names no module"):
        network.part("shared.decoder", "a/multilabel")


def test_askers_must_agree() -> None:
    config = {"class_path": SHARING, "init_args": {"width": 4}}
    tasks = [
        dataclasses.replace(make_task("multilabel", dataset="a"), head={"class_path": SHARING}),
        dataclasses.replace(make_task("multilabel", dataset="b"), head=config),
    ]
    message = r"b/multilabel: the shared part 'layer' was made for a/multilabel with.*6.*4.*equal"
    with pytest.raises(ConfigError, match=message):
        Network(BACKBONE, None, tasks)
    with pytest.raises(ConfigError, match=r"shared is 'a\.b'; expected a name of letters"):
        Network(BACKBONE, None, []).shared.ask("a.b", None, nn.Identity, "t")


def make_guided(*kinds: str) -> Network:
    torch.manual_seed(0)
    config = {"class_path": f"{__name__}.GuidedHead"}
    guided = dataclasses.replace(make_task("multilabel"), head=config)
    others = [make_task(kind) for kind in kinds]
    for task in others:
        task.head["init_args"] = {"score_threshold": 0.0} if task.kind == "detection" else {}
    return Network(BACKBONE, None, [guided, *others])


def test_a_guide_tells_its_boxes_and_nothing_else_happens_to_it() -> None:
    network, batch = make_guided("detection").eval(), make_batch("multilabel")
    # the classification head reads no maps, but its guide's boxes come from them
    expected = network.predict("toy/detection", batch.images)
    guide, modes = network.head("toy/detection").train(), []
    guide.register_forward_hook(lambda head, *_: modes.append(head.training))
    network.run(batch.task, batch.images)
    assert modes == [False]  # no dropout, and no statistics of another task's images
    told = network.head("toy/multilabel").told
    assert guide.training
    for mine, theirs in zip(told.boxes, expected.boxes, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert len(mine)
        assert not mine.requires_grad


@pytest.mark.parametrize("kinds", [(), ("segmentation",)])
def test_a_guide_must_be_a_detector_of_the_run(kinds) -> None:
    with pytest.raises(ConfigError, match=r"toy/multilabel: guide is 'detection'; expected a det"):
        make_guided(*kinds)
