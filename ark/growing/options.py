"""An architecture as options of `ark fit`, for messages that say what to set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def as_options(backbone: Mapping[str, Any]) -> str:
    """To be pasted behind a command.

    Args:
        backbone: {"name", "image_size", "args"} of `Network.architecture`.
    """
    found = [f"--model.backbone.name={backbone['name']}"]
    if args := backbone.get("args"):
        found.append(f"--model.backbone.args='{flow(args)}'")
    return " ".join([*found, f"--data.image_size={backbone['image_size']}"])


def flow(values: Mapping[str, Any]) -> str:
    """Plain data as YAML on one line: `{width: 24, hidden: true}`."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False).strip()
