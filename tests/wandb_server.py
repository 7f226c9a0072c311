"""A stand-in for a W&B server on loopback: enough of it for wandb's own client to send a run.

It keeps what a dashboard would show: runs by id, each with its config and the lines of its history.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40


@dataclass
class Sent:
    """What came of one run."""

    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Sent] = {}
        self.artifacts: list[dict[str, Any]] = []

    def handle_error(self, *_: Any) -> None:
        """wandb closes connections as it likes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """Of a GraphQL request."""
        if "upsertBucket" in query:
            return self._upsert(values)
        if "createRunFiles" in query:
            names = values["files"]
            files = [{"name": n, "uploadUrl": f"{self.url}/storage/{n}"} for n in names]
            self.runs[values["run"]].files += names
            found = {"runID": "1", "uploadHeaders": [], "files": files}
            return {"createRunFiles": found}
        if "createArtifact(" in query:
            self.artifacts.append(values["input"])
            # it has it all already: nothing to upload
            artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1"}}
            return {"createArtifact": {"artifact": artifact}}
        if "RunResumeStatus" in query:
            return {"model": self._resume(values["name"])}
        return {}

    def _upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, Sent())
        run.config |= json.loads(values.get("config") or "{}")
        project = {"id": "1", "name": values["project"], "entity": {"id": "1", "name": "me"}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": name, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _resume(self, name: str) -> dict[str, Any]:
        run = self.runs.get(name)
        entity = {"id": "1", "name": "me"}
        if run is None:
            return {"id": "1", "name": "ark", "entity": entity, "bucket": None}
        lines = len(run.history)
        tail = json.dumps([json.dumps(run.history[max(run.history)])] if lines else [])
        bucket = {
            **{"id": f"id-{name}", "name": name, "displayName": name, "summaryMetrics": "{}"},
            **{"historyLineCount": lines, "eventsLineCount": 0, "logLineCount": 0},
            **{"historyTail": tail, "eventsTail": "[]", "tags": [], "wandbConfig": '{"t": 1}'},
            "config": json.dumps(run.config),
        }
        return {"id": "1", "name": "ark", "entity": entity, "bucket": bucket}

    def stream(self, name: str, content: dict[str, Any]) -> None:
        """Of /files/ENTITY/PROJECT/RUN/file_stream."""
        run = self.runs[name]
        history = content.get("files", {}).get("wandb-history.jsonl")
        if history:
            for number, line in enumerate(history["content"], history["offset"]):
                run.history[number] = json.loads(line)
        if "exitcode" in content:
            run.exit_code = content["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/graphql":
            content = json.loads(body)
            found = self.server.answer(content["query"], content.get("variables") or {})
            self._reply({"data": found})
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
            self._reply({"limits": {}})
        else:
            self._reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
