"""`ark serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from typing import Any

import torch

from ark.errors import ConfigError

log = logging.getLogger("ark")
LOCAL = ("127.0.0.1", "localhost", "::1")
_UVICORN: dict[str, Any] = {
    "log_level": "warning",
    "timeout_graceful_shutdown": 3,  # seconds for what is under way when Ctrl+C comes
    "lifespan": "off",  # nothing is to be done then, and its task complains when Ctrl+C comes early
}


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    megabytes: float = 20.0,
    device: str | None = None,
    names: list[str] | None = None,
    window: str | list[float] = "auto",
    note: str | None = None,
    allow: list[str] | None = None,
) -> None:
    """Serves a model: a page to drop images on, and JSON.

    Args:
        model: what `ark.load` takes: a folder, a hub's owner/name, or a run.
        host: address to listen at. 127.0.0.1 is this machine alone; there is no password, so
            0.0.0.0 gives the model to the whole network.
        port: to listen at; 0: any that is free.
        megabytes: an upload's limit.
        device: "cpu" or "cuda"; cuda where there is one if not given.
        names: further host names under which browsers reach this server.
        window: how pixels of more than 8 bits become 8, as of `ark predict`.
        note: text at the page's foot; if not given it says that this is for research.
        allow: class paths of heads outside Ark that may be imported, as of `ark.load`.

    Raises:
        ConfigError: no such model, a packet is missing, or the port is taken.
    """
    try:
        from uvicorn import Config, Server

        from ark.serving.app import NOTE, Limits, make_app
        from ark.serving.reading import check_window
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run `pip install ark-foundation[serve]`"
        ) from error
    from ark.published.loading import load

    if megabytes <= 0:
        raise ConfigError(f"megabytes: {megabytes}; expected a number above 0")
    checked = check_window(window, "window")
    try:
        with _listen(host, port) as listening:
            place = device or ("cuda" if torch.cuda.is_available() else "cpu")
            loaded = load(model, device=place, allow=allow or ())
            known = [*LOCAL, host, socket.gethostname(), *(names or [])]
            text = NOTE if note is None else note
            app = make_app(loaded, known, Limits(megabytes), checked, text)
            where = _address(listening)
            log.info("%s: %d tasks at %s (Ctrl+C ends it)", model, len(loaded.tasks), where)
            if host not in LOCAL:
                log.warning("%s: there is no password: whoever reaches it can use the model", host)
            Server(Config(app, **_UVICORN)).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again when all is closed
        log.info("ended")


def _listen(host: str, port: int) -> socket.socket:
    """Before the model is loaded, which takes a while.

    Raises:
        ConfigError: another listens there, or this machine has no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except socket.gaierror as error:
        said = str(error.strerror)
    except OSError as error:
        said = os.strerror(error.errno or 0)
    except OverflowError as error:
        said = str(error)
    raise ConfigError(
        f"{host}:{port} cannot be listened at: {said}; choose another --port or --host"
    )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    version = ipaddress.ip_address(host).version
    return f"http://[{host}]:{port}" if version == 6 else f"http://{host}:{port}"
