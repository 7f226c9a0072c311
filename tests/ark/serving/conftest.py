"""A server on a free port, and a browser."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from fastapi import FastAPI
from published_models import publish

import ark
from ark.published.model import Model
from ark.serving.app import Limits, make_app

MEGABYTES = 0.5


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of `app`, served from a thread."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return ark.load(publish(tmp_path_factory.mktemp("served"), name="small", license="mit"))


@pytest.fixture(scope="session")
def url(model: Model) -> Iterator[str]:
    with running(make_app(model, ["localhost"], Limits(MEGABYTES))) as address:
        yield address


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """make_app's arguments -> an address, until the test ends."""
    stack = ExitStack()

    def start(*args: object, **options: object) -> str:
        return stack.enter_context(running(make_app(*args, **options)))  # type: ignore[arg-type]

    with stack:
        yield start


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's; it is installed where that is possible."""
    if shutil.which("chromium") is None:
        install = "apt-get update && apt-get install -y --no-install-recommends chromium"
        subprocess.run(["bash", "-c", install], capture_output=True, check=False)
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium, and apt-get could not install it")
    return found
