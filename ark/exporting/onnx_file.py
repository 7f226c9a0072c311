"""`ark onnx`: a published model as one ONNX file."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ark.errors import ConfigError
from ark.exporting.checking import TOLERANCES, check, differences
from ark.exporting.graph import (
    INPUT,
    Description,
    Graph,
    Program,
    describe,
    describe_task,
    exportable,
)
from ark.exporting.source import check_size, chosen, example_of, new_file, source

log = logging.getLogger("ark")
AXES = ("batch", "channels")
# the file's own description, which viewers and onnxruntime show
ABOUT = """\
Input "images": (batch, 1 or 3, {side}, {side}), gray or RGB; of uint8 0..255, of float32 0..1. The
whole image, resized without regard to its aspect ratio (by the mean of the area where it is made
at least twice smaller, otherwise bilinear). Normalisation is inside: give the pixels as they are.
Outputs: "pooled", "embedding", and by task <dataset>/<task> what the metadata "ark.tasks" says:
multilabel, multiclass, ordinal (batch, classes) probabilities; values (batch, classes) numbers;
segmentation (batch, classes, {side}, {side}) probabilities, exclusive: the rest is background's;
detection .../boxes (batch, cells, 4) x1, y1, x2, y2 in pixels of the input and .../scores
(batch, cells, classes), before non-maximum suppression, for which the metadata have the numbers.
All metadata are JSON."""


def onnx(
    model: str,
    file: str,
    tasks: list[str] | None = None,
    precision: Literal["float32", "float16"] = "float32",
    input: Literal["uint8", "float32"] = "uint8",
    tolerance: float | None = None,
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Writes an ONNX file that stands alone: weights, normalisation, class names, thresholds.

    Its input "images" is (batch, 1 or 3, S, S), gray or RGB, resized without regard to the aspect
    ratio; nothing else is to be done to it. Its outputs are "pooled", "embedding" and, by task,
    `<dataset>/<task>`: probabilities, masks or values; of detection .../boxes and .../scores of
    all cells, before non-maximum suppression. Tasks that cannot be exported are listed.

    Args:
        model: folder that `ark export` wrote, a hub's owner/name, or the folder of a run.
        file: to write, ending in .onnx.
        tasks: whose heads are in it; all if not given.
        precision: of weights and arithmetic; outputs are float32 in any case.
        input: bytes in 0..255, or numbers in 0..1.
        tolerance: most that an output may differ from torch's in float32: 1e-4, of float16 0.05;
            a share of the greatest value where that is above 1.
        overwrite: replace a file.
        allow: class paths of heads outside Ark that may be imported, as of `ark.load`.

    Raises:
        ConfigError: no such model or task, nothing can be exported, a file is in the way, a package
            is missing, or an output differs by more than `tolerance`.
    """
    _need_packages()
    path, partial = new_file(file, ".onnx", overwrite)
    network, facts = source(model, allow or ())
    check_size(network, file, 2 if precision == "float16" else 4)
    keys, dtype = chosen(network, tasks, model), getattr(torch, input)
    lower = copy.deepcopy(network).half() if precision == "float16" else network
    graph, made, left = exportable(lower, keys, example_of(network, dtype), _converted)
    said = describe(network, facts, precision)
    said.tasks = {key: describe_task(network, key) for key in graph.keys}
    said.left_out = left
    reference = Graph(network, graph.keys)
    with torch.no_grad():
        said.outputs = list(reference.named(example_of(network, dtype)))
    try:
        _save(made, said, partial)
        found = differences(reference, _runs(partial), dtype, said.image_size)
        lines = check(found, TOLERANCES[precision] if tolerance is None else tolerance, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    report(path, lines, left)


def report(path: Path, lines: str, left: dict[str, str]) -> None:
    """Says what is in the file, and what is not."""
    log.info("%s: %.1f MB\n%s", path, path.stat().st_size / 2**20, lines)
    for key, reason in left.items():
        log.warning("  %s is LEFT OUT: %s", key, reason)


def _converted(program: Program) -> torch.onnx.ONNXProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own future
        made = torch.onnx.export(program, verbose=False)
    assert made is not None
    return made


def _save(made: torch.onnx.ONNXProgram, said: Description, path: Path) -> None:
    graph = made.model.graph
    graph.inputs[0].name = INPUT
    for output, name in zip(graph.outputs, said.outputs, strict=True):
        output.name = name
    _name_axes(graph)
    made.model.doc_string = ABOUT.format(side=said.image_size)
    made.model.metadata_props.update(said.texts())
    made.save(path)


def _name_axes(graph: Any) -> None:
    """The input's first two axes, and what is computed from them: torch calls them s34 and s90."""
    names = {str(axis): name for axis, name in zip(graph.inputs[0].shape, AXES, strict=False)}
    any_name = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in (*graph.inputs, *(made for node in graph.all_nodes() for made in node.outputs)):
        for number, axis in enumerate(value.shape or ()):
            if not isinstance(axis, int) and axis.value is not None:
                value.shape[number] = any_name.sub(lambda m: names[m[0]], axis.value)


def _runs(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(a) for a in session.run(None, {INPUT: images.numpy()})]

    return run


def _need_packages() -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing(error) from error
    onnxruntime.set_default_logger_severity(3)  # no notes on nodes that it removes
    for name in ("onnxscript", "onnx_ir"):  # nor a line for each constant
        logging.getLogger(name).setLevel(logging.WARNING)


def missing(error: ImportError) -> ConfigError:
    return ConfigError(
        f"ONNX needs the package {error.name!r}; run `pip install ark-foundation[onnx]`"
    )
