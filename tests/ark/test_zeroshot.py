"""Oracle: the head's own probabilities, joined by hand, scored by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ark.network import Network
from ark.ontology import Ontology
from ark.types import DetectionTarget, FeatureInfo, MultilabelTarget, SegmentationTarget, TaskSpec
from ark.zeroshot import ZeroShot
from heads.classification import ClassificationHead
from toys import SIZE, make_batch, make_task

ONTOLOGY = Ontology.checked(
    {"chest": {}, "heart": {"parents": ["chest"]}, "lung": {"parents": ["chest"]}}
)
COUNT = 24


def make_network(*kinds: str) -> Network:
    torch.manual_seed(0)
    tasks = [make_task(kind) for kind in kinds]
    return Network({"name": "test_efficientnet", "image_size": SIZE}, None, tasks).eval()


def run(network: Network, target: TaskSpec, batch) -> dict[str, tuple[float, float, float]]:
    scores = ZeroShot(network, [target], ONTOLOGY)
    batch.task = target.key
    scores.update(batch)
    return {f"{p.head} {p.name}": (v, *interval) for p, v, interval in scores.scores(200)}


@pytest.mark.parametrize(("kind", "join"), [("multilabel", np.max), ("multiclass", np.sum)])
def test_a_parent_is_scored_by_its_children_and_a_stranger_by_nothing(kind, join) -> None:
    network, batch = make_network(kind), make_batch(kind, COUNT)
    target = TaskSpec("other", "findings", "multilabel", ("Chest", "rib", "tail"))
    labels = torch.randint(0, 2, (COUNT, 3)).float()
    known = torch.rand(COUNT, 3) < 0.8
    batch.target = MultilabelTarget(labels * known, known)
    found = run(network, target, batch)
    mine = network.predict(f"toy/{kind}", batch.images).probabilities.numpy()
    heart, lung, rib = mine.T
    expected = {"Chest": join([heart, lung], axis=0), "rib": rib}
    assert set(found) == {f"toy/{kind} {name}" for name in expected}
    for k, (name, score) in enumerate(expected.items()):
        some = known[:, k].numpy()
        value, low, high = found[f"toy/{kind} {name}"]
        assert value == pytest.approx(roc_auc_score(labels[some, k], score[some]), abs=1e-6)
        assert low < value < high


def test_masks_and_boxes_are_scored_in_the_same_way() -> None:
    network = make_network("segmentation", "multilabel")
    batch = make_batch("segmentation", 4)
    target = TaskSpec("other", "organs", "segmentation", ("tail", "chest"))
    truth = batch.target.masks
    masks = torch.stack([truth[:, 2], truth[:, :2].amax(dim=1)], dim=1)
    batch.target = SegmentationTarget(masks, torch.ones(4, 2, dtype=torch.bool))
    found = run(network, target, batch)
    mine = network.predict("toy/segmentation", batch.images).probabilities[:, :2].amax(dim=1) >= 0.5
    dice = [
        2 * float((m & t.bool()).sum()) / float(m.sum() + t.sum())
        for m, t in zip(mine, masks[:, 1], strict=True)
    ]
    assert set(found) == {"toy/segmentation chest"}
    assert found["toy/segmentation chest"][0] == pytest.approx(np.mean(dice), abs=1e-6)


def test_boxes_are_scored_under_the_other_datasets_numbers() -> None:
    task = make_task("detection")
    task.head["init_args"] = {"score_threshold": 0.0, "max_boxes": 5}
    torch.manual_seed(0)
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, [task]).eval()
    batch = make_batch("detection", 4)
    mine = network.predict(task.key, batch.images)
    # what the head says of one class is the truth of another dataset, where its number is 0
    number = int(mine.labels[0][0])
    truth = [b[labels == number] for b, labels in zip(mine.boxes, mine.labels, strict=True)]
    numbers = [torch.zeros(len(boxes), dtype=torch.int64) for boxes in truth]
    batch.target = DetectionTarget(truth, numbers)
    name = task.classes[number]
    target = TaskSpec("other", "boxes", "detection", (name, "tail"))
    assert run(network, target, batch)[f"toy/detection {name}"][0] == pytest.approx(1)


def test_a_head_is_not_scored_on_its_own_task() -> None:
    network = make_network("multilabel")
    assert not ZeroShot(network, [make_task("multilabel")], ONTOLOGY).pairs
    assert ZeroShot(network, [make_task("multilabel", dataset="other")], ONTOLOGY).pairs


def test_exclusive_masks_keep_the_most_probable_class() -> None:
    task = make_task("segmentation")
    task.head["init_args"] = {"mode": "multiclass"}
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, [task]).eval()
    batch = make_batch("segmentation", 4)
    mine = network.predict(task.key, batch.images).masks()
    chest = mine[:, :2].any(dim=1, keepdim=True)
    batch.target = SegmentationTarget(chest.to(torch.uint8), torch.ones(4, 1, dtype=torch.bool))
    target = TaskSpec("other", "organs", "segmentation", ("chest",))
    assert chest.any()
    assert run(network, target, batch)["toy/segmentation chest"][0] == 1


class Needy(ClassificationHead):
    """A head that cannot be built without its argument."""

    def __init__(self, task: TaskSpec, features: FeatureInfo, needed: int) -> None:
        super().__init__(task, features)


def test_heads_are_scored_whatever_arguments_they_need() -> None:
    task = make_task("multilabel")
    task.head.update(class_path=f"{__name__}.Needy", init_args={"needed": 1})
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, [task]).eval()
    batch = make_batch("multilabel", COUNT)
    target = TaskSpec("other", "findings", "multilabel", ("heart", "lung", "rib"))
    assert set(run(network, target, batch)) == {
        f"toy/multilabel {name}" for name in ("heart", "lung", "rib")
    }
