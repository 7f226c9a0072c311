"""A real HTTP server on 127.0.0.1 that can drop, truncate, delay, refuse and lie."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], None]


class FaultyServer(ThreadingHTTPServer):
    """Serves `files` (path -> bytes). Each GET of a path plays the next of its `faults`, if any."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.gets: Counter[str] = Counter()
        self.requests: list[str] = []  # lines and headers as they came
        self.silent = False  # says no version and no size
        self.closing = threading.Event()  # releases the stalled

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        path = self.path_asked()
        self.server.requests.append(f"{self.requestline}\n{self.headers}")
        self.server.gets[path] += 1
        if self.server.faults[path]:
            self.server.faults[path].popleft()(self, self.server.files.get(path, b""))
        else:
            self.wfile.write(self.answer())

    def path_asked(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/")

    def answer(self) -> bytes:
        """Sends the headers; returns the body to send."""
        content = self.server.files.get(self.path_asked())
        if content is None:
            self.start(404, 0)
            return b""
        if self.server.silent:
            self.start(200, None)
            self.close_connection = True
        else:
            self.start(200, len(content), ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return content

    def start(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def drop(handler: Handler, content: bytes) -> None:
    """Half of the content, then the connection is reset."""
    handler.start(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)  # close sends RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    os.close(handler.connection.detach())


def truncate(handler: Handler, content: bytes) -> None:
    """The connection ends properly, before the announced length."""
    handler.start(200, len(content))
    handler.wfile.write(content[:-100])
    handler.close_connection = True


def understate(handler: Handler, content: bytes) -> None:
    """A wrong Content-Length that fits the short body: HTTP itself sees no fault."""
    handler.start(200, len(content) - 100)
    handler.wfile.write(content[:-100])


def endless(handler: Handler, content: bytes) -> None:
    """Sends until the client hangs up."""
    handler.start(200, None)
    while True:
        handler.wfile.write(bytes(1 << 16))


def stall(handler: Handler, content: bytes) -> None:
    """Half of the content, then no byte and no end."""
    handler.start(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.server.closing.wait(60)
    handler.close_connection = True


def mute(handler: Handler, content: bytes) -> None:
    """Not even a status."""
    handler.server.closing.wait(60)
    handler.close_connection = True


def trickle(handler: Handler, content: bytes) -> None:
    """All of the content in ten pieces, 0.1 s apart."""
    handler.start(200, len(content))
    step = len(content) // 10 + 1
    for start in range(0, len(content), step):
        handler.wfile.write(content[start : start + step])
        handler.wfile.flush()
        time.sleep(0.1)


def corrupt(handler: Handler, content: bytes) -> None:
    """The right number of bytes, one of them wrong."""
    handler.start(200, len(content))
    handler.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))


def labelled(handler: Handler, content: bytes) -> None:
    """The stored bytes of a .gz file, which some servers call an encoding of the file."""
    handler.start(200, len(content), **{"Content-Encoding": "gzip"})
    handler.wfile.write(content)


def status(code: int, **headers: str) -> Fault:
    return lambda handler, content: handler.start(code, 0, **headers)


@contextlib.contextmanager
def running() -> Iterator[FaultyServer]:
    server = FaultyServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
