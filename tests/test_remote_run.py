"""`ark fit` on shards behind a URL: the same run, each file fetched once, nothing else asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ark, losses, write_recipe

from datamodules.config import build_source, load_datasets, prepare
from datamodules.tars.writing import write_shards


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder and counts what is fetched."""

    gets: Counter[str]

    def do_GET(self) -> None:
        self.gets[Path(self.path).name] += 1
        super().do_GET()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The URL of `folder` and the number of GETs by file."""
    Counting.gets = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Counting.gets
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One dataset in about six training shards; batches of two."""
    path = write_recipe(
        tmp_path,
        datasets=["tiny_findings.yaml"],
        data={"image_size": 32, "batch_size": 2, "workers": 2},
        cycle={"cycles": 2, "each": [{"passes": 1}]},
    )
    (dataset,) = load_datasets([str(tmp_path / "tiny_findings.yaml")])
    source = prepare(dataset).source
    args = {"config": source, "max_shard_bytes": 7000, "overwrite": True}
    write_shards(build_source(dataset), dataset.name, dataset.shards, **args)
    return path


def move_to(url: str, folder: Path) -> None:
    path = folder / "tiny_findings.yaml"
    content = yaml.safe_load(path.read_text()) | {"shards": url}
    path.write_text(yaml.safe_dump(content))


def test_a_run_over_http_is_the_run_over_files(recipe: Path, tmp_path: Path) -> None:
    ark("fit", "--config", recipe, "--run.name=files")
    tars = {path.name for path in (tmp_path / "shards/tiny_findings").glob("*.tar")}
    assert len(tars) > 5
    options = ["--run.name=http", f"--data.cache.folder={tmp_path / 'cache'}"]
    with served(tmp_path / "shards/tiny_findings") as (url, gets):
        move_to(url, tmp_path)
        ark("fit", "--config", recipe, *options)
        assert {name for name in gets if name.endswith(".tar")} == tars
        assert {gets[name] for name in tars} == {1}, "each shard once, for two workers and the rest"
        assert {Path(name).suffix for name in gets} == {".tar", ".json"}
        first = gets.total()
        ark("fit", "--config", recipe, *options, "--run.overwrite=true")
        assert gets.total() - first <= 2, "the cache holds the shards; only _info.json may be asked"
    assert losses(tmp_path / "runs/http") == losses(tmp_path / "runs/files")


def test_a_shard_that_the_server_lost_is_named(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "shards/tiny_findings/train-000001.tar").unlink()
    with served(tmp_path / "shards/tiny_findings") as (url, _):
        move_to(url, tmp_path)
        with pytest.raises(SystemExit):
            ark("fit", "--config", recipe, f"--data.cache.folder={tmp_path / 'cache'}")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"ark: error: {url}/train-000001.tar: not found; check")


@pytest.mark.parametrize("location", ["pipe:touch {trap}", "simplecache::http://x", "ftp://x/y"])
def test_other_locations_are_refused_and_nothing_runs(
    recipe: Path, tmp_path: Path, capsys, location: str
) -> None:
    trap = tmp_path / "trap"
    move_to(location.format(trap=trap), tmp_path)
    with pytest.raises(SystemExit):
        ark("fit", "--config", recipe)
    assert "expected a local path, file://, http://" in capsys.readouterr().err
    assert not trap.exists()
