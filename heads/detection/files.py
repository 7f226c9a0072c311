"""mmdet's configuration files as plain data."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ark.types import ConfigError

from .mmdet_adapter import mmdet_models

SHIPPED = "mmdet::"


def load_config(name: str, presets: list[str], where: str) -> dict[str, Any]:
    """The model of an mmdet configuration file, as plain data.

    Args:
        name: a path, or `mmdet::` and a path inside the configurations that mmdet ships.
        presets: what else `name` could have been, for error messages.

    Raises:
        ConfigError: there is no such file, or it is no configuration.
    """
    mmdet_models()
    import mmdet
    from mmengine import Config

    shipped = Path(mmdet.__file__).parent / ".mim" / "configs"
    path = shipped / name.removeprefix(SHIPPED) if name.startswith(SHIPPED) else Path(name)
    inside = path.resolve().is_relative_to(shipped.resolve())
    if path.suffix not in (".py", ".yaml", ".yml", ".json") or (
        name.startswith(SHIPPED) and not inside
    ):
        raise ConfigError(
            f"{where}: unknown detector {name!r}; expected one of {presets}, the path of "
            f"an mmdet configuration, '{SHIPPED}retinanet/retinanet_r50_fpn_1x_coco.py' for one "
            "that mmdet ships, or a mapping"
        )
    if not path.is_file():
        near = difflib.get_close_matches(name.removeprefix(SHIPPED), _names(shipped), 5, 0.3)
        raise ConfigError(
            f"{where}: detector {name!r}: there is no file {path}; of a like name mmdet ships "
            f"{[SHIPPED + other for other in near]}"
        )
    try:
        config = plain(Config.fromfile(str(path)))
        return config.get("model", config)
    except Exception as error:  # the file is a program: it may raise anything
        raise ConfigError(f"{where}: detector {name!r} cannot be read: {error}") from error


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*_*.py"))


def plain(config: Any) -> Any:
    """Mappings and sequences as dicts and lists; the caller's own."""
    if isinstance(config, Mapping) or hasattr(config, "to_dict"):
        items = config.to_dict() if hasattr(config, "to_dict") else config
        return {key: plain(value) for key, value in items.items()}
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    return copy.deepcopy(config)
