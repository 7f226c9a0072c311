"""From `{"class_path": ..., "init_args": {...}}` to an object, with errors a user can act on.

The trainer's own classes are built by jsonargparse; heads and sources are built here because a
published checkpoint must rebuild its heads without the training stack.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ark.types import ConfigError

T = TypeVar("T")
HEADS = Path(__file__).resolve().parents[1] / "heads"
OTHER_NAME = "ark_heads"  # of Ark's own heads where `heads` is somebody else's


def build(config: Mapping[str, Any], base: type[T], where: str, *args: Any) -> T:
    """Builds `config["class_path"]` as `cls(*args, **init_args)`.

    Args:
        base: the class that the result must be an instance of.
        where: what this configures, for error messages ("head of task nih14/findings").

    Raises:
        ConfigError: naming the class, the argument and what would be accepted.
    """
    cls = resolve(config, base, where)
    init_args = dict(config.get("init_args") or {})
    accepted = list(inspect.signature(cls).parameters.values())[len(args) :]
    names = [p.name for p in accepted]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted)
    if unknown := [name for name in init_args if name not in names and not open_ended]:
        raise ConfigError(
            f"{where}: {cls.__name__} has no argument {unknown[0]!r}; it accepts {names}"
        )
    missing = [p.name for p in accepted if _required(p) and p.name not in init_args]
    if missing:
        raise ConfigError(
            f"{where}: {cls.__name__} needs init_args.{missing[0]}; set it in the YAML"
        )
    try:
        return cls(*args, **init_args)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {cls.__name__} cannot be made with init_args {init_args}: {error}"
        ) from error


def resolve(config: Mapping[str, Any], base: type[T], where: str) -> type[T]:
    """The class that `config["class_path"]` names; it must be a subclass of `base`."""
    if extra := set(config) - {"class_path", "init_args"}:
        raise ConfigError(
            f"{where}: unknown key {sorted(extra)[0]!r}; expected class_path and init_args"
        )
    path = str(config.get("class_path", ""))
    module_name, _, class_name = path.rpartition(".")
    if not module_name:
        raise ConfigError(
            f"{where}: class_path is {path!r}; expected an import path, module.ClassName"
        )
    try:
        cls = getattr(_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module exists; something that it imports is not installed
        raise ConfigError(f"{where}: class_path {path!r}: no module {error.name!r}") from error
    except AttributeError as error:
        raise ConfigError(
            f"{where}: class_path {path!r}: module {module_name!r} has no {class_name!r}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where}: {path} is not a subclass of {base.__module__}.{base.__name__}")
    return cls


def _module(name: str) -> ModuleType:
    """Ark's own heads, also in a process that has a package `heads` of its own."""
    root, _, rest = name.partition(".")
    if root != "heads" or _is_ours(root):
        return importlib.import_module(name)
    if OTHER_NAME not in sys.modules:
        spec = spec_from_file_location(OTHER_NAME, HEADS / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[OTHER_NAME] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"{OTHER_NAME}.{rest}" if rest else OTHER_NAME)


def _is_ours(root: str) -> bool:
    loaded = sys.modules.get(root)
    spec = loaded.__spec__ if loaded is not None else find_spec(root)
    origin = spec.origin if spec is not None else None
    return origin is not None and Path(origin).resolve().parent == HEADS


def _required(parameter: inspect.Parameter) -> bool:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter.kind in named and parameter.default is inspect.Parameter.empty
