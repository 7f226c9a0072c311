"""Child classes are not more probable than what they imply: a penalty on the student."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ark.ontology import Ontology
from ark.types import ClassPrediction, ConfigError, Prediction, TaskSpec

log = logging.getLogger("ark")


class Hierarchy(nn.Module):
    """Which class implies which in each multilabel task, and by how much a head breaks it.

    Args:
        ontology: None where there is none.
        weight: of the penalty; 0 switches it off.

    Raises:
        ConfigError: a weight without an ontology, or below 0.
    """

    def __init__(self, tasks: Sequence[TaskSpec], ontology: Ontology | None, weight: float) -> None:
        super().__init__()
        if weight < 0 or (weight and ontology is None):
            raise ConfigError(
                f"model.hierarchy: {weight}; expected 0, or more with model.ontology, the YAML "
                "that says which class implies which"
            )
        self.weight = weight
        self._names: dict[str, str] = {}  # task key -> its buffer's name
        for number, task in enumerate(tasks if weight and ontology else []):
            pairs = ontology.implications(task) if ontology else []
            if pairs and task.kind == "multilabel":
                self._names[task.key] = f"implied_{number}"
                self.register_buffer(f"implied_{number}", torch.tensor(pairs), persistent=False)
        if weight and not self._names:
            log.warning(
                "model.hierarchy does nothing: the ontology joins no two classes of one multilabel "
                "task as child and parent"
            )

    def speaks_of(self, task: str) -> bool:
        """Whether a class of this task implies another one of it."""
        return task in self._names

    def forward(self, task: str, prediction: Prediction) -> Tensor:
        """weight * the mean over images and pairs of max(0, p(child) - p(parent)).

        The constraint of C-HMCNN (Giunchiglia and Lukasiewicz 2020, arXiv 2010.10151) as a hinge.
        """
        assert isinstance(prediction, ClassPrediction)
        child, parent = self.get_buffer(self._names[task]).T
        probabilities = prediction.probabilities
        excess = probabilities[:, child] - probabilities[:, parent]
        return self.weight * excess.clamp(min=0).mean()
