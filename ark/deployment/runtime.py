"""An ONNX file of `ark onnx` in place of a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ark.deployment.files import _need
from ark.deployment.graph import FEATURES, INPUT
from ark.errors import ConfigError
from ark.types import ClassPrediction, MaskPrediction, Prediction, TaskSpec, ValuesPrediction


class OnnxNetwork:
    """What `ark predict` asks of a network: tasks, the input's size, predictions.

    Raises:
        ConfigError: no file of `ark onnx`.
    """

    def __init__(self, path: Path) -> None:
        runtime = _need("onnxruntime")[0]
        try:
            self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            facts = self.session.get_modelmeta().custom_metadata_map
            tasks = json.loads(facts["tasks"])
            self.backbone = SimpleNamespace(image_size=int(facts["image_size"]))
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ConfigError(
                f"checkpoint {path}: no file that `ark onnx` wrote, or damaged: {error!r}"
            ) from error
        self.tasks = {t["task"]: _spec(t) for t in tasks}
        self._exclusive = {t["task"]: t["exclusive"] for t in tasks}

    def to(self, device: Any) -> OnnxNetwork:
        """onnxruntime has its own devices; this file runs on the CPU."""
        return self

    def __call__(self, images: Tensor) -> dict[str, Prediction]:
        """(B, 3, S, S) uint8 -> the prediction of every task."""
        return self._run(images, list(self.tasks))

    def predict(self, task: str, images: Tensor) -> Prediction:
        return self._run(images, [task])[task]

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D')."""
        return torch.from_numpy(self.session.run([FEATURES], {INPUT: images.cpu().numpy()})[0])

    def _run(self, images: Tensor, tasks: list[str]) -> dict[str, Prediction]:
        found = self.session.run(tasks, {INPUT: images.cpu().numpy()}) if tasks else []
        outputs = (torch.from_numpy(output) for output in found)
        return {key: self._named(key, o) for key, o in zip(tasks, outputs, strict=True)}

    def _named(self, key: str, output: Tensor) -> Prediction:
        kind = self.tasks[key].kind
        if kind == "segmentation":
            return MaskPrediction(output, self._exclusive[key])
        return ValuesPrediction(output) if kind == "values" else ClassPrediction(output)


def _spec(task: dict[str, Any]) -> TaskSpec:
    dataset, _, name = task["task"].partition("/")
    return TaskSpec(dataset, name, task["kind"], tuple(task["classes"]))
