"""`ark.load`: from a folder or a hub's repository to a model, without running foreign code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ark import registry
from ark.errors import ConfigError
from ark.network import Network
from ark.published.config import CONFIG, Facts, check_trusted, check_weights, read_config
from ark.published.model import Model

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow: Sequence[str] = (),
) -> Model:
    """A published model, in eval mode.

    Args:
        path: a folder that `ark export` wrote; the folder of a run (its teacher); a name that
            `ark models` lists; or a repository `owner/name` of a hub (huggingface_hub: HF_ENDPOINT,
            HF_TOKEN).
        revision: commit, tag or branch of a repository.
        token: for a private repository.
        dtype: of the weights in memory; float32 if not given, whatever they are stored as.
        allow: class paths of heads outside Ark that this model may import. Without it nothing is
            imported but Ark's own heads, and nothing is ever unpickled.

    Raises:
        ConfigError: there is no such model; a file is cut off, changed or of another format; it
            asks for foreign code; or its weights do not fit its architecture.
    """
    if Path(path).suffix == ".ckpt" or is_run(Path(path)):
        return of_run(Path(path), allow).to(device=device, dtype=dtype or torch.float32)
    folder = find(path, revision, token)
    facts = read_config(folder)
    check_trusted(folder / CONFIG, facts.architecture, allow)
    state = _read(check_weights(folder, facts))
    network = build(folder / CONFIG, facts)
    _fill(network, state, facts, folder)
    return Model(network, facts).to(device=device, dtype=dtype or torch.float32)


def find(path: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of a model; fetches it where it must.

    Raises:
        ConfigError: there is no such model.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(
            f"{folder}: is a file; ark.load reads folders. `ark import KIND {folder} FOLDER` makes "
            "one of the papers' files and others' encoders"
        )
    if known := registry.known().get(str(path)):
        return registry.fetch(known, revision)
    if isinstance(path, Path) or path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise ConfigError(
            f"{path}: no such folder, no name of `ark models`, and no repository of a hub "
            "(owner/name)"
        )
    from ark.published.hub import fetch

    return fetch(path, revision, token)


def is_run(folder: Path) -> bool:
    """Whether this is what `ark fit` left, instead of a published model."""
    places = (folder / "model" / "teacher.safetensors", folder / "teacher.safetensors")
    return not (folder / CONFIG).is_file() and any(place.is_file() for place in places)


def of_run(path: Path, allow: Sequence[str] = ()) -> Model:
    """The teacher of a run, or of a file of its checkpoints, which may be somebody else's.

    Raises:
        ConfigError: as of `load`.
    """
    from ark.checkpoint import load_state
    from ark.published.export import facts_of

    architecture, state = load_state(path, "teacher")
    check_trusted(path, architecture, allow)
    network = Network.from_architecture(architecture)
    network.load_state_dict(state)
    return Model(network, facts_of(path, network, "teacher"))


def build(where: Path, facts: Facts) -> Network:
    """The network that a configuration describes, with random weights.

    Raises:
        ConfigError: it describes none.
    """
    try:
        network = Network.from_architecture(facts.architecture)
    except ConfigError:
        raise
    except Exception as error:  # torch, timm, smp and mmdet each have their own
        said = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"{where}: ark.architecture cannot be built: {type(error).__name__}: {said[0]}"
        ) from error
    for name in ("mean", "std"):  # timm's own may change with its version
        values = getattr(facts, name)
        if values:
            getattr(network.backbone, name).copy_(torch.tensor(values).view(3, 1, 1))
    return network


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: is damaged: {error}") from error


def _fill(network: Network, state: dict[str, Tensor], facts: Facts, folder: Path) -> None:
    module: Any = network.backbone.model if facts.parts == "backbone" else network
    own = module.state_dict()
    state = {k: v.to(own[k].dtype) if k in own else v for k, v in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())  # a line a tensor
        raise ConfigError(
            f"{folder}: the weights do not fit the architecture: {said[:400]}"
        ) from error
