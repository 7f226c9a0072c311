"""`ark serve` as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fastapi import FastAPI
from published_models import publish

from ark.network import Network
from ark.serving.command import serve
from ark.types import ConfigError, TaskSpec
from toys import CLASSES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path, busy: bool) -> None:
    """Also where a client never ends its upload; and port 0 is any that is free."""
    command = [sys.executable, "-m", "ark", "serve", str(publish(tmp_path)), "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"http://127\.0\.0\.1:(\d+) ", said)) is None:
            said += process.stderr.readline() or pytest.fail(said)
        with socket.create_connection(("127.0.0.1", int(found[1]))) as client:
            if busy:
                with urllib.request.urlopen(found[0].strip(), timeout=60):
                    pass  # it has begun
                client.sendall(b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n")
                client.sendall(b"Content-Length: 9\r\n\r\n")
                client.settimeout(1)
                with pytest.raises(TimeoutError):  # until it waits for the rest
                    client.recv(1)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_a_head_of_ones_own_is_served_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[FastAPI] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.append(self.config.app))
    task = TaskSpec("toy", "points", "points", CLASSES, {"class_path": "landmarks.LandmarkHead"})
    network = Network({"name": "test_efficientnet", "image_size": 64}, None, [task]).eval()
    folder = str(publish(tmp_path, network))
    with pytest.raises(ConfigError, match="--allow="):
        serve(folder, port=0)
    serve(folder, port=0, allow=["landmarks.LandmarkHead"])
    assert len(served) == 1
