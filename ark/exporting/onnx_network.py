"""An ONNX file of `ark onnx` in a network's place, for `ark predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ark.errors import ConfigError
from ark.exporting.boxes import choose
from ark.exporting.graph import INPUT, Description
from ark.types import (
    ClassPrediction,
    MaskPrediction,
    PointsPrediction,
    Prediction,
    TaskSpec,
    ValuesPrediction,
)


class _Size:
    """What is asked of a backbone where only predictions are wanted."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size


class OnnxNetwork:
    """Runs on the processor, whatever device is asked for.

    Attributes:
        tasks: those whose heads are in the file.
        said: what the file says of itself.
        backbone: with `image_size` alone.

    Raises:
        ConfigError: the file is missing, cut off, no ONNX, or not written by `ark onnx`; or
            onnxruntime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.session = _session(Path(path))
        self.said = Description.read(self.session.get_modelmeta().custom_metadata_map, str(path))
        self._check_outputs(path)
        self.backbone = _Size(self.said.image_size)
        self.tasks = {
            key: TaskSpec(t["dataset"], t["name"], t["kind"], tuple(t["classes"]))
            for key, t in self.said.tasks.items()
        }

    def to(self, device: Any) -> OnnxNetwork:
        return self

    def __call__(self, images: Tensor) -> dict[str, Prediction]:
        """(B, 1 or 3, S, S) uint8, or float in 0..1 -> every head's prediction, by task key."""
        return self._run(images, list(self.tasks))

    def predict(self, task: str, images: Tensor) -> Prediction:
        """The prediction of one head."""
        return self._run(images, [task])[task]

    def tensors(self, images: Tensor, names: list[str] | None = None) -> dict[str, Tensor]:
        """The graph's outputs as they are, float32; all if not named."""
        asked = self.said.outputs if names is None else names
        given = images.cpu()
        if self.session.get_inputs()[0].type == "tensor(uint8)":
            given = given if given.dtype == torch.uint8 else (given * 255).round().to(torch.uint8)
        else:
            given = given.float() / 255 if given.dtype == torch.uint8 else given.float()
        found = self.session.run(asked, {INPUT: given.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(asked, found, strict=True)}

    def _run(self, images: Tensor, tasks: list[str]) -> dict[str, Prediction]:
        names = [name for task in tasks for name in self._outputs(task)]
        found = self.tensors(images, names)
        return {task: self._prediction(task, found) for task in tasks}

    def _outputs(self, task: str) -> list[str]:
        return [o for o in self.said.outputs if o == task or o.startswith(f"{task}/")]

    def _prediction(self, task: str, found: dict[str, Tensor]) -> Prediction:
        facts, kind = self.said.tasks[task], self.tasks[task].kind
        if kind == "detection":
            return choose(found[f"{task}/boxes"], found[f"{task}/scores"], facts)
        if kind == "points":
            return PointsPrediction(found[f"{task}/points"], found[f"{task}/scores"])
        if kind == "segmentation":
            return MaskPrediction(found[task], bool(facts["exclusive"]))
        return ValuesPrediction(found[task]) if kind == "values" else ClassPrediction(found[task])

    def _check_outputs(self, path: str | Path) -> None:
        there = [output.name for output in self.session.get_outputs()]
        if there != self.said.outputs:
            raise ConfigError(
                f"{path}: its outputs are {there}, but its metadata say {self.said.outputs}; the "
                "file was changed: write it again with `ark onnx`"
            )


def _session(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"checkpoint {path}: no such file; expected one that `ark onnx` wrote")
    try:
        import onnxruntime
    except ImportError as error:
        from ark.exporting.onnx_file import missing

        raise missing(error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no notes on what it makes simpler
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds are made by pybind and share no base
        raise ConfigError(
            f"checkpoint {path}: onnxruntime cannot read it; it is cut off, damaged or no ONNX "
            f"file: write it again with `ark onnx` ({str(error).strip().splitlines()[0][:200]})"
        ) from error
