"""Any form of a model that can predict: a run, a checkpoint, a published folder, an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ark import checkpoint
from ark.errors import ConfigError
from ark.network import Network

if TYPE_CHECKING:
    from ark.exporting.onnx_network import OnnxNetwork


def load_network(path: str | Path, which: str = "teacher") -> Network | OnnxNetwork:
    """A network in eval mode.

    Args:
        path: what `ark.checkpoint.load_network` reads, a folder of `ark export`, or a file of
            `ark onnx`.
        which: "teacher" or "student"; a published model is one of them.

    Raises:
        ConfigError: nothing of that kind is there, or it is the other network.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from ark.exporting.onnx_network import OnnxNetwork

        found = OnnxNetwork(path)
        _check_which(path, which, found.said.which)
        return found
    return checkpoint.load_network(path, which)


def _check_which(path: Path, asked: str, there: str) -> None:
    # "teacher" is the default, which nobody needs to have meant
    if asked == "student" and there != asked:
        raise ConfigError(f"{path}: holds the {there}, not the student; leave --which out")
