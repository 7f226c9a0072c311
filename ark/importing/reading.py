"""From a file that somebody else wrote to named tensors, without running what it may ask for.

torch.load(weights_only=True) lets a pickle name only what torch lists. The papers' files also hold
numpy scalars (their best loss) and the arguments of a command line: exactly these are allowed.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ark.errors import ConfigError

Which = Literal["teacher", "student"]
# where a file keeps them: Ark+, Foundation X, and what trainers commonly write
PLACES = {
    "teacher": ("teacher", "teacher_model"),
    "student": ("student", "state_dict", "model"),
}
FLAT = "the file"  # a place: the tensors are at its top
_WRAP = re.compile(r"^((module|_orig_mod)\.)+")
_SCALARS = ("Bool", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")


def read(path: str | Path) -> dict[str, Any]:
    """What is in a .safetensors or a torch file: nested plain data and tensors, on the CPU.

    Raises:
        ConfigError: no such file; it is cut off or of another format; it holds no mapping; or it
            asks for more than plain data, whose name is said. Nothing of it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a checkpoint (.pth, .tar, .safetensors)")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(_plain()):
            # a zip is mapped: optimiser states, twice the weights, are never read
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read, {_damage(error)}") from error
    except Exception as error:  # the unpickler's own, and whatever a hostile pickle provokes
        raise ConfigError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; expected a dict of tensors")
    return dict(content)


def _plain() -> list[Any]:
    """What a pickle may name beyond torch's own list."""
    scalar: Any = np.float64(0).__reduce__()[0]
    modules = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [getattr(np.dtypes, f"{name}DType") for name in _SCALARS]
    return [*((scalar, name) for name in modules), np.dtype, *dtypes, argparse.Namespace]


def _damage(error: Exception) -> str:
    """Without torch's advice to load it unrestricted."""
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which holds code; save the module's state_dict()"
    return f"it is cut off or damaged: {str(error) or 'it is empty'}"


def _refusal(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
        r"(?:Unsupported (?:global|class)|named) ['`]?([\w.]+)", str(error)
    )
    if found is None:
        inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        cause = inner[1].strip() if inner else repr(error)
        return f"{path}: is no checkpoint of torch, or damaged: {cause}"
    return (
        f"{path}: asks for {found.group(1)!r}, which is no plain data; refused, and nothing of it "
        "was run. If you trust its author: load it in a process of its own, save only its tensors"
    )


def tensors(
    content: Mapping[str, Any], which: Which, path: str | Path
) -> tuple[dict[str, Tensor], str]:
    """The state dict of one network, without the prefixes of DataParallel and torch.compile, and
    the name of its place in the file.

    A flat state dict is taken whole, whichever is asked for (MICCAI Ark-6: the teacher). A file
    without a teacher gives its only network, under whatever name.

    Raises:
        ConfigError: there is none, or only the other.
    """
    asked = next((name for name in PLACES[which] if _is_state(content.get(name))), None)
    others = [n for names in PLACES.values() for n in names if _is_state(content.get(n))]
    if not others and not _is_state(content):
        others = [name for name, value in content.items() if _is_state(value)]
    if asked is None and which == "teacher" and len(others) == 1:
        asked = others[0]  # no teacher beside it
    if asked is None and others:
        raise ConfigError(
            f"{path}: has no {which}, it holds {others}; choose with --which=teacher or student"
        )
    state = content[asked] if asked else content
    if not _is_state(state):
        raise ConfigError(
            f"{path}: no state dict found; its keys are {list(content)[:8]}, expected tensors, or "
            f"one of {[name for names in PLACES.values() for name in names]}"
        )
    found = {_WRAP.sub("", str(k)): v for k, v in state.items() if isinstance(v, Tensor)}
    return found, asked or FLAT


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
