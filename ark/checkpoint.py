"""Networks on disk: safetensors beside a JSON that says how to rebuild them. Nothing is unpickled
without torch's restriction to plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ark.checkpoints.sealing import verify
from ark.distributed import ranks
from ark.importing.reading import read
from ark.network import Network
from ark.published.config import CONFIG
from ark.types import ConfigError

ARCHITECTURE = "architecture.json"


def save_networks(folder: Path, **networks: Network) -> None:
    """Writes `folder/<name>.safetensors` for each network and one architecture for all.

    Every rank calls it, because weights may be sharded; the first writes.
    """
    for name, network in networks.items():
        state = {
            key: ranks.whole(value).contiguous() for key, value in network.state_dict().items()
        }
        if ranks.first():
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / f"{name}.safetensors")
            (folder / ARCHITECTURE).write_text(json.dumps(network.architecture, indent=1))


def load_network(path: str | Path, which: str = "teacher") -> Network:
    """A network in eval mode, from a run's folder, its model/ folder, a training checkpoint, or a
    published model.

    Args:
        which: "teacher" or "student"; a published model holds one, which it is.

    Raises:
        ConfigError: nothing of that kind is there, or the file is not Ark's.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        return _published(path, which)
    architecture, state = load_state(path, which)
    network = Network.from_architecture(architecture)
    network.load_state_dict(state)
    return network.eval()


def load_state(path: Path, which: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The architecture and the tensors that `load_network` makes a network of."""
    return _from_training(path, which) if path.is_file() else _from_folder(path, which)


def _published(folder: Path, which: str) -> Network:
    from ark.published.loading import load

    model = load(folder)
    if which == "student" and model.facts.which == "teacher":
        raise ConfigError(
            f"checkpoint {folder}: holds the teacher, not the student; the run's folder has both"
        )
    return model.network


def _from_folder(path: Path, which: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = path / "model" if (path / "model").is_dir() else path
    weights, architecture = folder / f"{which}.safetensors", folder / ARCHITECTURE
    for file in (weights, architecture):
        if not file.is_file():
            raise ConfigError(
                f"checkpoint {path}: {file} is missing; expected the folder of a finished run, "
                "or a file such as RUN/checkpoints/last.ckpt"
            )
    try:
        return json.loads(architecture.read_text()), load_file(weights)
    except (ValueError, SafetensorError) as error:
        raise ConfigError(f"checkpoint {path}: {weights.name} is damaged: {error}") from error


def _from_training(path: Path, which: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    verify(path)
    checkpoint = read(path)
    if not is_training(checkpoint):
        raise ConfigError(
            f"checkpoint {path}: not written by `ark fit`; of the papers' files and others' "
            f"encoders `ark import KIND {path} FOLDER` makes a folder that can be used instead"
        )
    prefix = {"student": "network.", "teacher": "teacher.network."}[which]
    state = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    return checkpoint["ark"]["architecture"], state


def is_training(content: Mapping[str, Any]) -> bool:
    """Whether a file with this content is a checkpoint of `ark fit`."""
    return isinstance(content.get("ark"), Mapping) and "state_dict" in content


def check_same(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """A checkpoint is only loaded into a run that means the same by every number in it.

    Raises:
        ConfigError: names what differs.
    """
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ConfigError(
                f"ckpt_path: the checkpoint's run had {name} = {theirs.get(name)}, this one has "
                f"{value}; use the recipe of that run (its config.yaml), or start a new run"
            )
