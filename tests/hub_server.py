"""A stand-in for a hub on loopback: enough of it for huggingface_hub's own client to push and pull.

Branches hold files; each commit has a name. The client is pointed at it by HF_ENDPOINT.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API = re.compile(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit|tree|revision)/([^/?]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.branches.get(revision, self.commits.get(revision))

    def sha(self, revision: str) -> str:
        files = self.files(revision) or {}
        names = "".join(f"{n}{hashlib.sha1(d).hexdigest()}" for n, d in sorted(files.items()))
        digest = hashlib.sha1(names.encode()).hexdigest()
        self.commits[digest] = files
        return digest


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.server.repositories
            if not known:  # older clients say "private"
                private = asked.get("visibility") == "private" or asked.get("private", False)
                self.server.repositories[name] = Repository(private)
            return self._json({"url": f"{self.server.url}/{name}"}, 409 if known else 200)
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        found = API.match(self.path)
        assert found, self.path
        name, what, revision = found.groups()
        repository = self.server.repositories[name]
        if what == "branch":
            repository.branches[revision] = dict(repository.branches["main"])
            return self._json({})
        if what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                repository.branches[revision] |= {line["value"]["path"]: content}
        sha = repository.sha(revision)
        url = f"{self.server.url}/{name}/commit/{sha}"
        return self._json({"commitOid": sha, "commitUrl": url, "success": True})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami"):
            return self._json({"name": "me", "type": "user"})
        found = API.match(self.path) or FILE.match(self.path)
        if found is None:
            return self._error(404, "EntryNotFound")
        name = found[1]
        repository = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            return self._error(404, "RepoNotFound")
        api = API.match(self.path) is not None
        revision = found[3] if api else found[2]
        files = repository.files(revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        sha = repository.sha(revision)
        if not api:
            return self._file(files.get(found[3]), sha)
        if found[2] == "tree":
            rows = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            return self._json(rows)
        siblings = [{"rfilename": n} for n in files]
        return self._json({"id": name, "sha": sha, "siblings": siblings, "private": False})

    def _file(self, data: bytes | None, sha: str) -> None:
        if data is None:
            return self._error(404, "EntryNotFound")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(200, data, {"ETag": etag, "X-Repo-Commit": sha})

    def _error(self, code: int, name: str) -> None:
        self._send(code, b"{}", {"X-Error-Code": name})

    def _json(self, content: Any, code: int = 200) -> None:
        self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
