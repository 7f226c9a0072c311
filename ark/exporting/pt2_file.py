"""`ark pt2`: a published model for torch without Ark, or compiled for this machine's processor."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ark.errors import ConfigError
from ark.exporting.checking import TOLERANCES, check, differences
from ark.exporting.graph import Description, Graph, Program, describe, describe_task, exportable
from ark.exporting.onnx_file import report
from ark.exporting.source import chosen, example_of, new_file, source

log = logging.getLogger("ark")
METADATA = "ark.json"


def pt2(
    model: str,
    file: str,
    tasks: list[str] | None = None,
    compile: bool = False,
    input: Literal["uint8", "float32"] = "uint8",
    tolerance: float | None = None,
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Writes what `torch.export.load` reads, or with --compile=true AOTInductor's package, which
    `torch._inductor.aoti_load_package` and its C++ class read. Neither needs Ark, timm or mmdet.

    Input and outputs are those of `ark onnx`, in the same order. Of torch.export's file the
    metadata are its extra file ark.json; of the package they are FILE.json beside it.

    Args:
        model: folder that `ark export` wrote, a hub's owner/name, or the folder of a run.
        file: to write, ending in .pt2.
        tasks: whose heads are in it; all if not given.
        compile: to machine code of this machine's processor; needs a C++ compiler and minutes.
        input: bytes in 0..255, or numbers in 0..1.
        tolerance: as of `ark onnx`: 1e-4.
        overwrite: replace a file.
        allow: class paths of heads outside Ark that may be imported, as of `ark.load`.

    Raises:
        ConfigError: no such model or task, nothing can be exported, a file is in the way, torch
            cannot compile it, or an output differs by more than `tolerance`.
    """
    path, partial = new_file(file, ".pt2", overwrite)
    network, facts = source(model, allow or ())
    dtype = getattr(torch, input)
    example = example_of(network, dtype)
    graph, program, left = exportable(
        network, chosen(network, tasks, model), example, lambda traced: traced
    )
    said = describe(network, facts, "float32")
    said.tasks = {key: describe_task(network, key) for key in graph.keys}
    said.left_out = left
    with torch.no_grad():
        said.outputs = list(graph.named(example))
    try:
        runs = _compiled(program, partial, file) if compile else _saved(program, said, partial)
        found = differences(Graph(network, graph.keys), runs, dtype, said.image_size)
        lines = check(found, TOLERANCES["float32"] if tolerance is None else tolerance, file)
        if compile:
            path.with_name(path.name + ".json").write_text(json.dumps(said.texts(), indent=1))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    report(path, lines, left)


def _saved(program: Program, said: Description, path: Path) -> Any:
    """What runs the file, read again."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(said.texts())})
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Sequence[Tensor]:
        return module(images)

    return run


def _compiled(program: Program, path: Path, file: str) -> Any:
    """What runs the package, read again."""
    _need_compiler(file)
    from torch import _inductor

    try:
        _inductor.aoti_compile_and_package(program, package_path=str(path))
        model = _inductor.aoti_load_package(str(path))
    except Exception as error:  # a compiler's, or inductor's own kinds
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"{file}: AOTInductor cannot compile it: {type(error).__name__}: {lines[0][:300]}; "
            "without --compile=true torch.export's file has the same outputs"
        ) from error
    return lambda images: list(model(images))


def _need_compiler(file: str) -> None:
    name = os.environ.get("CXX", "g++")
    try:
        subprocess.run([name, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"{file}: --compile=true needs a C++ compiler, but {name!r} cannot be run ({error}); "
            "install g++ or name one in the variable CXX"
        ) from error
