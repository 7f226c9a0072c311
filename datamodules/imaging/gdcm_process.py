"""GDCM in a process of its own, which this file is too: on some broken data GDCM ends its process.

The process starts with the first image that needs it and serves its parent until that ends. Over
its pipes go a length of 8 bytes and as many bytes: a DICOM file one way; the other way an .npy
file, or the text of an error.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import subprocess
import sys
import threading
from typing import IO

import numpy as np

TIMEOUT = 120.0  # seconds for one image
_MEMORY = 2**33  # bytes that the process may have; a stream may ask for more than its header said
_NPY = b"\x93NUMPY"


def decode_apart(data: bytes, where: str) -> np.ndarray:
    """The pixels of a DICOM file as pydicom and GDCM decode them, the stored numbers.

    Raises:
        ValueError: the data is broken, whatever became of the process.
    """
    server = _servers.get(os.getpid())  # a fork must not share its parent's pipes
    if server is None:
        server = _servers[os.getpid()] = _Server()
    answer = server.ask(data)
    if not answer.startswith(_NPY):
        raise ValueError(answer.decode("utf-8", "replace") or "GDCM ended on it")
    return np.load(io.BytesIO(answer), allow_pickle=False)


class _Server:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, data: bytes) -> bytes:
        """The answer; empty where the process died or took too long."""
        with self._lock:
            if self._process is None:
                self._process = self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                _send(self._process.stdin, data)
                poll = select.poll()  # select.select fails where many files are open
                poll.register(self._process.stdout, select.POLLIN)
                if poll.poll(1000 * TIMEOUT):
                    return _receive(self._process.stdout)
            except (OSError, EOFError):
                pass
            self.close()
            return b""

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        # -P: this folder has an inspect.py, which must not hide Python's
        return subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


_servers: dict[int, _Server] = {}  # by process id


@atexit.register
def _close() -> None:
    if server := _servers.get(os.getpid()):
        server.close()


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little"))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(pipe, 8), "little")
    return _exactly(pipe, size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _answer(data: bytes) -> bytes:
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=False)
        pixels = pydicom.pixels.pixel_array(dataset, decoding_plugin="gdcm")
        buffer = io.BytesIO()
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue()
    except Exception as error:
        return (str(error) or type(error).__name__).encode()


def _serve() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe_in, pipe_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up in an answer
    while True:
        try:
            data = _receive(pipe_in)
        except EOFError:
            return
        _send(pipe_out, _answer(data))


if __name__ == "__main__":
    _serve()
