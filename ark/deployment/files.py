"""`ark onnx`, `ark compile`: a file for another runtime, compared with the network it came from."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ark.deployment.graph import INPUT, Graph, description, exportable
from ark.errors import ConfigError
from ark.published.loading import load
from ark.published.model import Model

log = logging.getLogger("ark")
OPSET = 18
FIXED_BATCH = 1  # of a compiled file whose batch is not free
TOLERANCE = 1e-3  # of outputs, of features relative to their largest
Run = Callable[[Tensor], list[Tensor]]


def onnx(model: str, output: str, tasks: list[str] | None = None, overwrite: bool = False) -> None:
    """Writes an ONNX file: bytes of images in, features, probabilities, values and masks out.

    `ark predict FILE.onnx IMAGES` runs it. Tasks that cannot be exported are named with the reason.

    Args:
        model: what `ark.load` takes.
        output: new file, such as model.onnx.
        tasks: which; all that are possible if not given.
        overwrite: replace a file.

    Raises:
        ConfigError: onnxruntime computes something else than torch, and the file is removed; or
            the model, a task or the file is wrong.
    """
    path, loaded, graph = _begin(model, output, tasks, overwrite, ".onnx")
    package = _need("onnx", "onnxruntime")[0]
    for name, symbol in _SYMBOLS.items():
        torch.onnx.register_custom_op_symbolic(f"aten::{name}", symbol, OPSET)
    half = path.with_name(f".{path.name}.tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of shapes that are fixed on purpose
        torch.onnx.export(
            graph,
            (_images(loaded, 2),),
            str(half),
            input_names=[INPUT],
            output_names=graph.names,
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *graph.names)},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter fixes the batch in several families of backbones
        )
    content = package.load(half)
    package.helper.set_model_props(content, description(loaded, graph.names))
    package.save(content, half)
    _finish(half, path, _onnx_run(half), loaded, graph, batches=(1, 3))


def compile(
    model: str,
    output: str,
    tasks: list[str] | None = None,
    how: Literal["export", "inductor"] = "export",
    overwrite: bool = False,
) -> None:
    """Writes a program that torch runs without Ark, for batches of one image.

    Args:
        model: what `ark.load` takes.
        output: new file, model.pt2.
        tasks: which; all that are possible if not given.
        how: "export" is torch.export (`torch.export.load(FILE).module()`); "inductor" is machine
            code of this kind of processor, which wants a C++ compiler here
            (`torch._inductor.aoti_load_package(FILE)`).
        overwrite: replace a file.

    Raises:
        ConfigError: the program computes something else, and the file is removed; torch cannot
            export the model; or the model, a task or the file is wrong.
    """
    path, loaded, graph = _begin(model, output, tasks, overwrite, ".pt2")
    half = path.with_name(f".tmp.{path.name}")  # torch wants the suffix
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about itself
            program = torch.export.export(graph, (_images(loaded, FIXED_BATCH),))
            run = _torch_run(program, half, how)
    except Exception as error:  # whatever torch raises of a model that it cannot follow
        half.unlink(missing_ok=True)
        raise ConfigError(f"{model}: torch cannot write it as {how}: {error}") from error
    _finish(half, path, run, loaded, graph, batches=(FIXED_BATCH,))


def _begin(
    model: str, output: str, tasks: list[str] | None, overwrite: bool, suffix: str
) -> tuple[Path, Model, Graph]:
    path = Path(output)
    if path.suffix != suffix:
        raise ConfigError(f"output: {output!r}; expected a file that ends with {suffix}")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there; choose another name, or --overwrite=true")
    loaded = load(model)
    names, left = exportable(loaded, tasks)
    for key, why in left.items() if tasks is None else ():
        log.warning("%s is left out: %s", key, why)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, loaded, Graph(loaded.network, names)


def _images(model: Model, count: int) -> Tensor:
    """(B, 3, S, S) uint8: smooth, as images are, and noise in the last."""
    generator = torch.Generator().manual_seed(0)
    side = model.image_size
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    images[-1] = torch.rand(3, side, side, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


# -- what torch's exporter lacks ----------------------------------------------------------------


def _expm1(graph: Any, x: Any) -> Any:
    """CORAL's; exp(x) - 1 loses digits of probabilities near 0."""
    return graph.op("Sub", graph.op("Exp", x), graph.op("Constant", value_t=torch.tensor(1.0)))


def _resize(graph: Any, x: Any, size: Any, align: Any, *scales: Any) -> Any:
    """Bilinear with antialiasing, of a plain transformer's pyramid."""
    none = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    options = {"mode_s": "linear", "coordinate_transformation_mode_s": "half_pixel"}
    flags = {"antialias_i": 1, "exclude_outside_i": 1, "axes_i": [2, 3]}
    sizes = graph.op("Cast", size, to_i=7)  # int64
    return graph.op("Resize", x, none, none, sizes, **options, **flags)


_SYMBOLS: dict[str, Callable[..., Any]] = {"expm1": _expm1, "_upsample_bilinear2d_aa": _resize}

# -----------------------------------------------------------------------------------------------


def _onnx_run(path: Path) -> Run:
    session = _need("onnxruntime")[0].InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return lambda x: [
        torch.from_numpy(np.asarray(o)) for o in session.run(None, {INPUT: x.numpy()})
    ]


def _torch_run(program: Any, path: Path, how: str) -> Run:
    if how == "export":
        torch.export.save(program, path)
        exported = torch.export.load(path).module()
        return lambda images: list(exported(images))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    compiled = torch._inductor.aoti_load_package(str(path))
    return lambda images: list(compiled(images))


@torch.no_grad()
def _finish(
    half: Path, path: Path, run: Run, model: Model, graph: Graph, batches: tuple[int, ...]
) -> None:
    """Gives the file its name if it computes what the network does.

    Raises:
        ConfigError: it does not.
    """
    worst = dict.fromkeys(graph.names, 0.0)
    for count in batches:
        images = _images(model, count)
        for name, found, expected in zip(graph.names, run(images), graph(images), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            difference = float((found - expected).abs().max()) / scale
            worst[name] = max(worst[name], difference if found.isfinite().all() else float("inf"))
    for name, difference in worst.items():
        log.info("%-40s largest difference to torch %.1e", name, difference)
    if (most := max(worst.values())) > TOLERANCE:
        half.unlink()
        raise ConfigError(
            f"{path}: differs from torch by {most:.1e}, at most {TOLERANCE:.0e} is allowed; the "
            "file was removed"
        )
    os.replace(half, path)
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def _need(*packages: str) -> list[Any]:
    try:
        return [import_module(name) for name in packages]
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run `pip install ark-foundation[onnx]`"
        ) from error
