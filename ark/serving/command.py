"""`ark serve`."""

from __future__ import annotations

import logging
import os

import torch

from ark.errors import ConfigError

log = logging.getLogger("ark")
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    megabytes: float = 20.0,
    device: str | None = None,
    names: list[str] | None = None,
) -> None:
    """Serves a model: a page to drop images on, and JSON.

    Args:
        model: what `ark.load` takes: a folder, a hub's owner/name, or a run.
        host: address to listen at. 127.0.0.1 is this machine alone; there is no password, so
            0.0.0.0 gives the model to the whole network.
        port: to listen at.
        megabytes: an upload's limit.
        device: "cpu" or "cuda"; cuda where there is one if not given.
        names: further host names under which browsers reach this server.

    Raises:
        ConfigError: no such model, a packet is missing, or the port is taken.
    """
    try:
        import uvicorn

        from ark.serving.app import make_app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run `pip install ark-foundation[serve]`"
        ) from error
    from ark.published.loading import load

    if megabytes <= 0:
        raise ConfigError(f"megabytes: {megabytes}; expected a number above 0")
    loaded = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    app = make_app(loaded, megabytes, [*LOCAL, host, *(names or [])])
    log.info("%s: %d tasks at http://%s:%d (Ctrl+C ends it)", model, len(loaded.tasks), host, port)
    if host not in LOCAL:
        log.warning("%s: there is no password: whoever reaches it can use the model", host)
    server = uvicorn.Server(uvicorn.Config(app, host, port, log_level="warning"))
    try:
        server.run()
    except SystemExit as error:  # uvicorn's word for a port that is taken
        raise ConfigError(
            f"port: {host}:{port} cannot be listened at: {os.strerror(98)}; choose another --port"
        ) from error
