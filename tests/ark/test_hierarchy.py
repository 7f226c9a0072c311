from __future__ import annotations

import pytest
import torch

from ark.hierarchy import Hierarchy
from ark.ontology import Ontology
from ark.types import ClassPrediction, ConfigError
from toys import make_task

CHEST = Ontology.checked({"heart": {}, "rib": {"parents": ["heart"]}})
TASKS = [make_task("multilabel"), make_task("multiclass")]  # of heart, lung and rib


def test_the_penalty_is_the_mean_excess_of_a_child_over_its_parent() -> None:
    hierarchy = Hierarchy(TASKS, CHEST, weight=2.0)
    probabilities = torch.tensor([[0.2, 0.0, 0.9], [0.8, 1.0, 0.5]], requires_grad=True)
    loss = hierarchy("toy/multilabel", ClassPrediction(probabilities))
    assert loss.item() == pytest.approx(2 * (0.7 + 0.0) / 2)
    loss.backward()
    assert probabilities.grad.tolist() == [[-1, 0, 1], [0, 0, 0]]
    # of one class an image nothing implies another
    assert not hierarchy.speaks_of("toy/multiclass")
    assert not hierarchy.state_dict()


def test_without_weight_it_says_nothing() -> None:
    assert not Hierarchy(TASKS, CHEST, weight=0.0).speaks_of("toy/multilabel")


@pytest.mark.parametrize(("ontology", "weight"), [(None, 1.0), (CHEST, -1.0)])
def test_a_weight_needs_an_ontology(ontology, weight) -> None:
    with pytest.raises(ConfigError, match=rf"model.hierarchy: {weight}; expected.*model.ontology"):
        Hierarchy(TASKS, ontology, weight)
