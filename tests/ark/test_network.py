from __future__ import annotations

import json

import pytest
import torch

from ark.head import Head
from ark.network import Network
from ark.types import ConfigError, TaskSpec
from toys import CLASSES, HEADS, SIZE, make_batch, make_task

BACKBONE = {"name": "test_efficientnet", "image_size": SIZE}


def test_rebuilds_itself_from_plain_data() -> None:
    tasks = [make_task(kind) for kind in HEADS]
    network = Network(BACKBONE, {"width": 12, "hidden": True}, tasks).eval()
    plain = json.loads(json.dumps(network.architecture))
    again = Network.from_architecture(plain).eval()
    again.load_state_dict(network.state_dict())
    assert list(again.tasks.values()) == tasks
    images = make_batch("multilabel").images
    one, other = network(images), again(images)
    assert list(one) == [f"toy/{kind}" for kind in HEADS]
    torch.testing.assert_close(
        one["toy/segmentation"].probabilities, other["toy/segmentation"].probabilities
    )
    assert one["toy/multiclass"].probabilities.shape == (2, len(CLASSES))


def test_the_projector_makes_the_embedding() -> None:
    network = Network(BACKBONE, {"width": 12}, [make_task("multilabel")])
    features = network.features(make_batch("multilabel").images, "embedding")
    assert features.embedding.shape == (2, 12)
    assert features.maps == []
    torch.testing.assert_close(features.embedding, network.projector(features.pooled))
    assert network.head("toy/multilabel").info.embedding == 12


def test_computes_only_what_a_head_reads() -> None:
    network = Network(BACKBONE, None, [make_task("segmentation")])
    features = network.features(make_batch("segmentation").images, "maps")
    assert features.pooled is None
    assert features.embedding is None


def test_a_lock_may_name_any_module_and_nothing_else() -> None:
    network = Network(BACKBONE, None, [make_task("segmentation"), make_task("multilabel")])
    key = "toy/segmentation"
    assert network.part("backbone", key) is network.backbone
    assert network.part("backbone.model.blocks", key) is network.backbone.model.blocks
    assert network.part("head", key) is network.heads[key]
    assert network.part("head.decoder", key) is network.heads[key].decoder
    with pytest.raises(ConfigError, match=r"'neck' names no module.*backbone.*and head"):
        network.part("neck", key)
    with pytest.raises(ConfigError, match=r"'head.neck' names no module.*decoder"):
        network.part("head.neck", key)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"class_path": "heads.nowhere.X"}, "no module 'heads.nowhere'"),
        ({"class_path": "heads.classification.X"}, "has no 'X'"),
        ({"class_path": "torch.nn.Linear"}, "not a subclass of ark.head.Head"),
        ({"class_path": "X"}, "expected an import path"),
        ({}, "class_path is ''"),
        ({"path": "heads.classification.X"}, "unknown key 'path'"),
        (
            {"class_path": HEADS["multilabel"], "init_args": {"depth": 3}},
            r"no argument 'depth'; it accepts \['dropout', ",
        ),
        ({"class_path": HEADS["detection"]}, "is of kind 'multilabel'"),
    ],
)
def test_a_head_that_cannot_be_built_says_why(head: dict, message: str) -> None:
    task = TaskSpec("toy", "labels", "multilabel", CLASSES, head)
    with pytest.raises(ConfigError, match=message):
        Network(BACKBONE, None, [task])


def test_two_tasks_of_one_name_are_an_error() -> None:
    with pytest.raises(ConfigError, match="'toy/multilabel' is listed twice"):
        Network(BACKBONE, None, [make_task("multilabel")] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "a/b"}, "dataset name 'a/b'"),
        ({"name": "a.b"}, "task name 'a.b'"),
        ({"classes": ()}, "at least one name"),
        ({"classes": ("x", "x")}, "each once"),
        ({"kind": "regression"}, "kind 'regression'; expected one of"),
    ],
)
def test_task_specs_are_checked(change: dict, message: str) -> None:
    values = {"dataset": "d", "name": "t", "kind": "multilabel", "classes": ("x",)} | change
    with pytest.raises(ConfigError, match=message):
        TaskSpec(**values)


def test_every_head_is_a_head() -> None:
    network = Network(BACKBONE, None, [make_task(kind) for kind in HEADS])
    assert all(isinstance(network.head(key), Head) for key in network.tasks)
