"""Ark: one vision backbone, trained on many datasets whose labels do not match.

    model = ark.load("owner/name")

Everything else is in its modules; importing this one imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ark.published.loading import load as load
    from ark.published.model import Model as Model

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from ark.published.loading import load

        return load
    if name == "Model":
        from ark.published.model import Model

        return Model
    raise AttributeError(f"module 'ark' has no attribute {name!r}")
