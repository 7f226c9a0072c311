"""Storages against a real HTTP server with faults, a real S3 interface and hostile input."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

import datamodules.tars.cache as cache_module
from ark.types import ConfigError
from datamodules.tars.cache import Cache, CacheConfig
from datamodules.tars.storage import LocalFolder, RemoteFolder, check_name, open_file, open_storage

from .http_server import (
    FaultyServer,
    corrupt,
    drop,
    endless,
    labelled,
    mute,
    running,
    stall,
    status,
    trickle,
    truncate,
    understate,
)

CONTENT = random.Random(0).randbytes(300_000)
FORK = multiprocessing.get_context("fork")
HOSTILE_NAMES = [
    *("", ".", "..", "../x", "a/../x", "a/..", "/etc/passwd", "//host/x", "a//b", "a/", "./a"),
    *("~", "~/x", "~root/x", "a\\b", "..\\x", "C:\\x", "a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\tb"),
    *("pipe:id", "s3://bucket/x", "http://host/x", "file:///etc/passwd", "simplecache::x", "a::b"),
    *("a?b", "a#b", "a%2e%2e", "%2e%2e/x", "a*", "[a]", "a|id", "$(id)", "`id`", "a;id", "-o=x"),
    *("x" * 256, "é" * 128, "a/" * 600 + "a", "a\udcffb", "a\u200bb", "a\u202eb", "a\u2215b"),
]
HOSTILE_LOCATIONS = [
    *("", "pipe:id", "pipe:touch /tmp/owned", "pipe://id", "PIPE:id", " pipe:id", "pi\tpe:id"),
    *("gs://bucket/x", "ssh://host/x", "sftp://host/x", "ftp://host/x", "data:,x", "hf://x/y"),
    *("simplecache::http://host/x", "filecache::s3://bucket/x", "zip://x.tar::http://host/x"),
    *("http://host/x::file:///etc", "s3://bucket/x::pipe:id", "/data::pipe:id", "memory://x"),
    *("s3://", "s3:///x", "s3:bucket/x", "s3://ab/x", "s3://key:secret@bucket/x", "s3a://bucket/x"),
    *("s3://bucket/../other", "s3://bucket/x?versionId=1", "s3://bucket/x#y", "s3://buc ket/x"),
    *("http://", "http:///x", "http:x", "http://host:port/x", "http://[::1", "http://host/x#y"),
    *("http://ho st/x", "http://host\\@other/x", "http://host:0/x", "http://host/a\nb"),
    *("file://host/x", "file:x", "file:///x?y", "file:///x%00y", "local:x", "C:\\data", "a\0b"),
    "~nobody-of-this-name/x",
]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def whole_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("part/*"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits; no proxy, no credentials and no cache of the machine's."""
    monkeypatch.setattr(cache_module, "BACKOFF", 0.01)
    monkeypatch.setattr(cache_module, "LONGEST", 0.05)
    monkeypatch.setattr(cache_module, "POLL", 0.02)
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with running() as server:
        server.files["a.tar"] = CONTENT
        yield server


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), gigabytes=0.01, retries=3, timeout=10.0)


@pytest.fixture
def storage(server: FaultyServer, config: CacheConfig) -> RemoteFolder:
    storage = open_storage(server.url, config)
    assert isinstance(storage, RemoteFolder)
    return storage


def impatient(server: FaultyServer, config: CacheConfig, **changes: Any) -> RemoteFolder:
    storage = open_storage(server.url, CacheConfig(**(vars(config) | changes)))
    assert isinstance(storage, RemoteFolder)
    return storage


# --- locations and names


def test_locations_that_are_allowed(tmp_path: Path) -> None:
    local = [str(tmp_path), tmp_path, "data/x", "./a:b", "~/x", f"file://{tmp_path}"]
    for location in [*local, f"file://localhost{tmp_path}", "/data/with space and ü"]:
        assert isinstance(open_storage(location), LocalFolder), location
    assert open_storage("file:///a%20b").where == "/a b"
    remote = ["http://host/x", "https://host:8443/x/?sig=1", "http://[::1]:80/x", "s3://bucket"]
    for location in [*remote, "s3://my.bucket/a/b/", "HTTPS://host", "http://u:p@host/x"]:
        assert isinstance(open_storage(location), RemoteFolder), location


@pytest.mark.parametrize("location", HOSTILE_LOCATIONS)
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="expected a local path, file://, http://"):
        open_storage(location)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_refused(
    name: str, tmp_path: Path, server: FaultyServer, storage: RemoteFolder
) -> None:
    for folder in (LocalFolder(tmp_path), storage, open_storage("s3://bucket/x")):
        with pytest.raises(ConfigError, match=r"rename the file|no such file"):
            folder.fetch(name)
        with pytest.raises(ConfigError):
            open_file(folder, name, size=1, sha256="0" * 64)
    assert not server.requests
    assert not (tmp_path / "cache").exists()


@given(st.text(max_size=12) | st.text("./~\\:ab \0", max_size=12))
def test_no_accepted_name_leaves_its_folder(name: str) -> None:
    try:
        accepted = check_name(name)
    except ConfigError:
        return
    assert accepted == name
    assert (Path("/folder") / name).resolve().is_relative_to("/folder")
    assert os.path.normpath(name) == name
    assert ":" not in name


@pytest.mark.parametrize("name", ["a.tar", "train-000_1.tar", "ü/ж 日本/é.tar", "x" * 255, ".x"])
def test_plain_names_of_any_script(name: str, server: FaultyServer, storage: RemoteFolder) -> None:
    server.files[name] = b"x" + name.encode()
    assert storage.fetch(name).read_bytes() == server.files[name]


def test_no_credentials_in_messages(server: FaultyServer, config: CacheConfig) -> None:
    secret = f"http://user:hunter2@127.0.0.1:{server.server_address[1]}/?token=hunter2"
    storage = open_storage(secret, config)
    server.files["c"] = CONTENT
    assert storage.fetch("c").read_bytes() == CONTENT
    assert "token=hunter2" in server.requests[-1]
    assert "Authorization: Basic" in server.requests[-1]
    said = [repr(storage), storage.where]
    server.faults["c"].extend([*[status(500)] * 9, *[drop] * 9, *[status(403)] * 9])
    for target in ("file:///x?token=hunter2", "ftp://u:hunter2@h/x"):
        server.faults["c"].append(status(302, Location=target))
    while server.faults["c"]:
        with pytest.raises(ConfigError) as caught:
            storage.fetch("c", sha256="0" * 64)
        said.append(str(caught.value))
        assert caught.value.__suppress_context__
    locations = ["ftp://u:hunter2@h/x", "http://u:hunter2@h:x/", "s3://u:hunter2@bucket/x"]
    for location in [*locations, "http://u:hunter2/@h/x", "http://h:x/?hunter2", "gs://h?hunter2"]:
        with pytest.raises(ConfigError) as caught:
            open_storage(location)
        said.append(str(caught.value))
    assert not [text for text in said if "hunter2" in text]


# --- local folders


def test_local_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "data-secret"
    for path in (folder / "sub", outside):
        path.mkdir(parents=True)
    (folder / "b").write_bytes(b"1234")
    (folder / "a").write_bytes(b"")
    (folder / "sub" / "c").write_bytes(b"c")
    (folder / "inner").symlink_to("sub/c")
    (tmp_path / "link").symlink_to(folder)
    for storage in (open_storage(folder), open_storage(tmp_path / "link")):
        assert storage.list() == ["a", "b", "inner"]
        assert storage.fetch("b", size=4, sha256="0" * 64).read_bytes() == b"1234"
        assert storage.fetch("sub/c").read_bytes() == storage.fetch("inner").read_bytes() == b"c"
    (outside / "x").write_bytes(b"secret")
    (folder / "out").symlink_to(outside / "x")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    storage = open_storage(folder)
    for name, fix in {
        "out": "a link out of",
        "up/data-secret/x": "a link out of",
        "loop": "copy the folder again",
        "fifo": "no such file",
        "sub": "no such file",
        "missing": "no such file",
    }.items():
        with pytest.raises(ConfigError, match=fix):
            storage.fetch(name)
    with pytest.raises(ConfigError, match="4 bytes, expected 5"):
        storage.fetch("b", size=5)
    with pytest.raises(ConfigError, match="no such folder"):
        open_storage(tmp_path / "none").list()


# --- http: what arrives, and what is asked


def test_a_checksum_finds_the_file_without_the_server(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    path = storage.fetch("a.tar", size=len(CONTENT), sha256=sha(CONTENT).upper())
    assert path.read_bytes() == CONTENT
    assert path == storage._cache.folder / sha(CONTENT)[:2] / f"{sha(CONTENT)}.tar"
    server.shutdown()
    assert storage.fetch("a.tar", sha256=sha(CONTENT)) == path
    assert server.gets == {"a.tar": 1}
    assert not parts(storage._cache.folder)


def test_without_checksum_a_changed_file_is_fetched_again(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    assert storage.fetch("a.tar").read_bytes() == CONTENT
    assert storage.fetch("a.tar").read_bytes() == CONTENT
    assert server.gets["a.tar"] == 1
    server.files["a.tar"] = CONTENT[::-1]
    assert storage.fetch("a.tar").read_bytes() == CONTENT[::-1]
    assert server.gets["a.tar"] == 2
    with pytest.raises(ConfigError, match="300000 bytes, expected 5"):
        storage.fetch("a.tar", size=5)
    assert server.gets["a.tar"] == 2


def test_a_server_that_tells_no_version_is_always_asked(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    server.silent = True
    for content in (CONTENT, CONTENT[::-1]):
        server.files["a.tar"] = content
        assert storage.fetch("a.tar").read_bytes() == content
    assert storage.fetch("a.tar", sha256=sha(CONTENT[::-1])).read_bytes() == CONTENT[::-1]


def test_http_cannot_be_listed(storage: RemoteFolder) -> None:
    with pytest.raises(ConfigError, match="name files as"):
        storage.list()


def test_bytes_come_as_they_are_stored(server: FaultyServer, storage: RemoteFolder) -> None:
    server.files["a.tar.gz"] = gzip.compress(CONTENT)
    server.faults["a.tar.gz"].append(labelled)
    path = storage.fetch("a.tar.gz", sha256=sha(server.files["a.tar.gz"]))
    assert path.read_bytes() == server.files["a.tar.gz"]
    assert path.suffix == ".gz"
    assert server.gets["a.tar.gz"] == 1


def test_a_proxy_of_the_environment_is_used(
    server: FaultyServer, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    storage = open_storage("http://far.away.invalid", config)
    assert storage.fetch("a.tar").read_bytes() == CONTENT
    assert server.requests[0].startswith("GET http://far.away.invalid/a.tar")


def test_redirects(server: FaultyServer, storage: RemoteFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    server.faults["x"].append(status(302, Location="/a.tar"))
    assert storage.fetch("x", size=len(CONTENT), sha256=sha(CONTENT)).read_bytes() == CONTENT
    for target in (f"file://{secret}", "ftp://127.0.0.1/x", "pipe:id", "data:,secret"):
        server.faults["y"].append(status(302, Location=target))
        with pytest.raises(ConfigError, match="check the folder's URL"):
            storage.fetch("y", size=6, sha256=sha(b"secret"))
    assert server.gets["y"] == 4


# --- http: faults


@pytest.mark.parametrize(
    ("faults", "timeout"),
    [
        ([drop], 10.0),
        ([truncate], 10.0),
        ([understate], 10.0),
        ([status(503), status(503)], 10.0),
        ([status(429), status(500), drop], 10.0),
        ([stall], 0.3),
        ([corrupt], 10.0),
        ([drop, corrupt, truncate], 10.0),
    ],
)
def test_faults_that_pass(
    faults: list, timeout: float, server: FaultyServer, config: CacheConfig
) -> None:
    storage = impatient(server, config, timeout=timeout)
    for given_sha in (sha(CONTENT), None):
        if given_sha is None and corrupt in faults:
            continue
        server.gets.clear()
        server.faults["a.tar"].extend(faults)
        path = storage.fetch("a.tar", size=len(CONTENT), sha256=given_sha)
        assert path.read_bytes() == CONTENT
        assert server.gets["a.tar"] == len(faults) + 1
    assert not parts(storage._cache.folder)


def test_slow_is_not_stalled(server: FaultyServer, config: CacheConfig) -> None:
    storage = impatient(server, config, timeout=0.4, retries=0)
    server.faults["a.tar"].append(trickle)
    start = time.monotonic()
    assert storage.fetch("a.tar", sha256=sha(CONTENT)).read_bytes() == CONTENT
    assert time.monotonic() - start > 0.8


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (drop, "Not enough data|reset"),
        (status(503), "HTTP 503"),
        (stall, "[Tt]imeout"),
        (truncate, "bytes"),
    ],
)
def test_faults_that_stay(
    fault: Callable, cause: str, server: FaultyServer, config: CacheConfig
) -> None:
    storage = impatient(server, config, timeout=0.2, retries=2)
    server.faults["a.tar"].extend([fault] * 9)
    with pytest.raises(ConfigError, match=cause) as caught:
        storage.fetch("a.tar", sha256=sha(CONTENT))
    assert f"{server.url}/a.tar: no success in 3 attempts" in str(caught.value)
    assert server.gets["a.tar"] == 3
    assert not parts(storage._cache.folder)
    assert not whole_files(storage._cache.folder)


def test_no_server(config: CacheConfig) -> None:
    storage = open_storage("http://127.0.0.1:1/x", config)
    for checksum in (None, "0" * 64):
        with pytest.raises(ConfigError, match=r"no success in 4 attempts.*Connect"):
            storage.fetch("a", sha256=checksum)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_no_second_attempt_where_it_is_useless(
    code: int, server: FaultyServer, storage: RemoteFolder
) -> None:
    server.faults["a.tar"].extend([status(code)] * 9)
    fix = "was uploaded" if code in (404, 410) else "credentials" if code != 400 else "URL"
    with pytest.raises(ConfigError, match=f"a.tar: (HTTP {code}|not found); check .*{fix}"):
        storage.fetch("a.tar", size=len(CONTENT), sha256=sha(CONTENT))
    assert server.gets["a.tar"] == 1


def test_asking_for_the_version_is_retried_too(server: FaultyServer, storage: RemoteFolder) -> None:
    server.faults["missing"].extend([status(503), drop])  # plays in GET, after HEAD found nothing
    with pytest.raises(ConfigError, match="missing: not found; check"):
        storage.fetch("missing")
    assert server.gets["missing"] == 3


def test_corrupt_bytes_are_refused(server: FaultyServer, storage: RemoteFolder) -> None:
    server.faults["a.tar"].extend([corrupt] * 2)
    wrong = sha(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(ConfigError) as caught:
        storage.fetch("a.tar", size=len(CONTENT), sha256=sha(CONTENT))
    for word in (f"{server.url}/a.tar", wrong, sha(CONTENT), "upload the file again"):
        assert word in str(caught.value)
    assert server.gets["a.tar"] == 2
    assert not whole_files(storage._cache.folder)
    assert not parts(storage._cache.folder)


def test_more_bytes_than_expected_are_not_taken(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    server.faults["a.tar"].extend([endless] * 2)
    with pytest.raises(ConfigError, match="more than the expected 300000 bytes"):
        storage.fetch("a.tar", size=len(CONTENT), sha256=sha(CONTENT))
    server.silent = True
    server.faults["a.tar"].extend([endless] * 2)
    with pytest.raises(ConfigError, match=r"do not fit the cache.*raise cache.gigabytes"):
        storage.fetch("a.tar", sha256=sha(CONTENT))
    assert not parts(storage._cache.folder)


@pytest.mark.parametrize(
    "checksum", ["../../../x", "/etc/passwd", "0" * 63, "0" * 65, "g" * 64, ""]
)
def test_a_checksum_is_no_path(checksum: str, server: FaultyServer, storage: RemoteFolder) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        storage.fetch("a.tar", sha256=checksum)
    assert not server.requests


def test_what_came_without_checksum_is_never_taken_for_checked(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    """The hash in the name of an unchecked file is no content's: asking for it asks the server."""
    key = storage.fetch("a.tar").name.removeprefix("url-").removesuffix(".tar")
    with pytest.raises(ConfigError, match=f"sha256 is {sha(CONTENT)}, expected {key}"):
        storage.fetch("a.tar", sha256=key)


@pytest.mark.parametrize(
    "name", ["a.part", "a.lock", "x/all.lock", "part", "lock", "a." + "x" * 200]
)
def test_no_name_meets_the_files_of_the_cache_itself(
    name: str, server: FaultyServer, storage: RemoteFolder
) -> None:
    server.files[name] = CONTENT
    for checksum in (None, sha(CONTENT)):
        assert storage.fetch(name, sha256=checksum).read_bytes() == CONTENT
    folder = storage._cache.folder
    assert {path.parent.parent for path in whole_files(folder)} == {folder}
    assert len(whole_files(folder)) == 2
    assert {path.stat().st_size for path in folder.glob("lock/*")} == {0}


# --- the bound


def fill(server: FaultyServer, names: str, size: int = 300_000) -> dict[str, str]:
    """Files of `size` different bytes; their checksums."""
    for name in names:
        server.files[name] = (name * size).encode()
    return {name: sha(server.files[name]) for name in names}


def test_the_least_recently_used_make_room(server: FaultyServer, config: CacheConfig) -> None:
    storage = impatient(server, config, gigabytes=0.001)
    sums = fill(server, "abcd")
    for name in "abca":
        storage.fetch(name, sha256=sums[name])
        time.sleep(0.02)
    folder = storage._cache.folder
    mine = folder / "ab" / "a note.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("not the cache's")
    os.utime(mine, (0, 0))
    storage.fetch("d", size=300_000, sha256=sums["d"])
    kept = {path.name for path in whole_files(folder)} - {mine.name}
    assert kept == {sums["a"], sums["c"], sums["d"]}
    assert mine.exists()
    fill(server, "e", 1_000_001)
    with pytest.raises(ConfigError, match=r"0\.001 GB do not fit .*raise cache\.gigabytes"):
        storage.fetch("e", size=1_000_001, sha256="0" * 64)
    assert server.gets["e"] == 0


def test_an_open_descriptor_survives_eviction(server: FaultyServer, config: CacheConfig) -> None:
    storage = impatient(server, config, gigabytes=0.0004)
    sums = fill(server, "ab")
    descriptor = open_file(storage, "a", sha256=sums["a"])
    path = storage.fetch("a", sha256=sums["a"])
    storage.fetch("b", sha256=sums["b"])
    assert not path.exists()
    assert os.pread(descriptor, 1 << 20, 0) == server.files["a"]
    os.close(descriptor)


def test_eviction_between_fetch_and_open(
    server: FaultyServer, storage: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, evictions = RemoteFolder.fetch, [2]

    def evicted(self: RemoteFolder, name: str, **given: Any) -> Path:
        path = fetch(self, name, **given)
        if evictions[0]:
            evictions[0] -= 1
            path.unlink()
        return path

    monkeypatch.setattr(RemoteFolder, "fetch", evicted)
    descriptor = open_file(storage, "a.tar", sha256=sha(CONTENT))
    assert os.pread(descriptor, 1 << 20, 0) == CONTENT
    os.close(descriptor)
    evictions[0] = -1
    with pytest.raises(ConfigError, match=r"raise cache\.gigabytes"):
        open_file(storage, "a.tar", sha256=sha(CONTENT))


def test_a_folder_that_cannot_be_written(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = open_storage(server.url, CacheConfig(str(tmp_path / "file")))
    with pytest.raises(ConfigError, match="another folder in cache"):
        storage.fetch("a.tar", sha256=sha(CONTENT))


@pytest.mark.parametrize(
    "wrong", [{"gigabytes": 0}, {"gigabytes": float("nan")}, {"retries": -1}, {"timeout": -1.0}]
)
def test_wrong_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"cache.{next(iter(wrong))} is"):
        CacheConfig(**wrong)


# --- several processes


def in_processes(count: int, work: Callable[[int], None]) -> list[Any]:
    """Starts `work(i)` in forked processes that wait for each other."""
    barrier = FORK.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(20)
        work(number)

    processes = [FORK.Process(target=run, args=(i,), daemon=True) for i in range(count)]
    for process in processes:
        process.start()
    return processes


def join(processes: list[Any]) -> None:
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


@pytest.mark.parametrize("checksum", [sha(CONTENT), None])
def test_processes_download_a_file_once(
    checksum: str | None, server: FaultyServer, storage: RemoteFolder
) -> None:
    server.faults["a.tar"].append(trickle)

    def work(_: int) -> None:
        assert storage.fetch("a.tar", sha256=checksum).read_bytes() == CONTENT

    join(in_processes(6, work))
    assert server.gets == {"a.tar": 1}


def test_the_bound_holds_for_several_processes(server: FaultyServer, config: CacheConfig) -> None:
    storage = impatient(server, config, gigabytes=0.001)
    sums = fill(server, "abcdefghij")

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(15):
            name = rng.choice("abcdefghij")
            size = rng.choice([None, 300_000])
            descriptor = open_file(storage, name, size=size, sha256=sums[name])
            assert sha(os.pread(descriptor, 1 << 20, 0)) == sums[name]
            os.close(descriptor)

    processes = in_processes(4, work)
    cache, most = Cache(config), 0
    while any(process.is_alive() for process in processes):
        with cache.lock("all"):
            held = in_flight(cache) + sum(p.stat().st_size for p in whole_files(cache.folder))
        most = max(most, held)
        time.sleep(0.005)
    join(processes)
    assert 600_000 < most <= 1_000_000
    assert not parts(cache.folder)


def in_flight(cache: Cache) -> int:
    total = 0
    for path in parts(cache.folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # given up just now
            continue
    return total


def test_a_download_that_was_killed_is_never_taken_for_whole(
    server: FaultyServer, storage: RemoteFolder
) -> None:
    folder = storage._cache.folder
    for name in ("a.tar", "b.tar"):
        server.files[name] = CONTENT + name.encode()
        server.faults[name].append(stall)

    def work(number: int) -> None:
        name = "ab"[number] + ".tar"
        storage.fetch(name, size=len(CONTENT) + 5, sha256=sha(server.files[name]))

    processes = in_processes(2, work)
    while server.gets.total() < 2 or len(parts(folder)) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert len(parts(folder)) == 2
    assert not whole_files(folder)
    path = storage.fetch("a.tar", size=len(CONTENT) + 5, sha256=sha(server.files["a.tar"]))
    assert path.read_bytes() == server.files["a.tar"]
    assert whole_files(folder) == [path]
    assert not parts(folder)  # the other file's was swept too


def test_a_download_waits_for_the_room_of_another(
    server: FaultyServer, config: CacheConfig
) -> None:
    storage = impatient(server, config, gigabytes=0.0004)
    sums = fill(server, "ab")
    server.faults["a"].append(trickle)
    processes = in_processes(1, lambda _: storage.fetch("a", size=300_000, sha256=sums["a"]))
    while not server.gets["a"]:
        time.sleep(0.01)
    assert storage.fetch("b", size=300_000, sha256=sums["b"]).read_bytes() == server.files["b"]
    join(processes)
    assert [path.name for path in whole_files(storage._cache.folder)] == [sums["b"]]


def test_threads_of_one_process(server: FaultyServer, storage: RemoteFolder) -> None:
    sums = fill(server, "abcdef")
    failed: list[Exception] = []

    def work(name: str) -> None:
        try:
            assert storage.fetch(name, sha256=sums[name]).read_bytes() == server.files[name]
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef" * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed
    assert all(server.gets[name] == 1 for name in "abcdef")


class Fetched(torch.utils.data.Dataset):
    """Item i: the bytes of the i-th file, fetched in the worker."""

    def __init__(self, storage: RemoteFolder, names: str) -> None:
        self.storage, self.names = storage, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[int, str]:
        assert torch.utils.data.get_worker_info() is not None
        return os.getpid(), sha(self.storage.fetch(self.names[number]).read_bytes())


def check_workers(storage: RemoteFolder, names: str, expected: list[str]) -> None:
    storage.fetch(names[0])  # the parent has a connection before it forks
    loader = torch.utils.data.DataLoader(Fetched(storage, names), batch_size=None, num_workers=2)
    rows = list(loader)
    assert [row[1] for row in rows] == expected
    assert len({row[0] for row in rows}) == 2


def test_http_in_forked_workers(server: FaultyServer, storage: RemoteFolder) -> None:
    check_workers(storage, "abcdef", list(fill(server, "abcdef").values()))


def test_a_pickle_holds_no_connection(server: FaultyServer, storage: RemoteFolder) -> None:
    storage.fetch("a.tar")
    assert storage._systems
    other = pickle.loads(pickle.dumps(storage))
    assert not other._systems
    assert other.fetch("a.tar") == storage.fetch("a.tar")


# --- s3


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch, surroundings: None) -> Any:
    """A client of an empty bucket `shards` with credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for file in client.list_objects_v2(Bucket="shards").get("Contents", []):
        client.delete_object(Bucket="shards", Key=file["Key"])
    return client


def test_s3(s3: Any, config: CacheConfig) -> None:
    storage = open_storage("s3://shards/set/", config)
    for key in ("set/b ü.tar", "set/a.tar", "set/sub/c.tar", "other/d.tar"):
        s3.put_object(Bucket="shards", Key=key, Body=CONTENT + key.encode())
    s3.put_object(Bucket="shards", Key="set/", Body=b"")  # what a console makes for a folder
    assert storage.list() == ["a.tar", "b ü.tar"]
    assert open_storage("s3://shards/set", config).list() == storage.list()
    assert storage.fetch("b ü.tar").read_bytes() == CONTENT + "set/b ü.tar".encode()
    content = CONTENT + b"set/a.tar"
    path = storage.fetch("a.tar", size=len(content), sha256=sha(content))
    assert path.read_bytes() == storage.fetch("a.tar").read_bytes() == content
    assert open_storage("s3://shards").fetch("other/d.tar").read_bytes() == CONTENT + b"other/d.tar"
    s3.put_object(Bucket="shards", Key="set/a.tar", Body=b"new")
    assert storage.fetch("a.tar").read_bytes() == b"new"
    assert storage.fetch("a.tar", sha256=sha(content)).read_bytes() == content  # cached
    with pytest.raises(ConfigError, match=r"s3://shards/set/sub: a folder"):
        storage.fetch("sub")
    with pytest.raises(ConfigError, match="expected " + "0" * 64):
        storage.fetch("a.tar", sha256="0" * 64)


def test_s3_that_is_not_there(s3: Any, config: CacheConfig) -> None:
    start = time.monotonic()
    for location in ("s3://shards/set", "s3://no-such-bucket/set"):
        storage = open_storage(location, config)
        for checksum in (None, "0" * 64):
            with pytest.raises(ConfigError, match=f"{location}/x: .*was uploaded"):
                storage.fetch("x", sha256=checksum)
        with pytest.raises(ConfigError, match="was uploaded"):
            storage.list()
    assert time.monotonic() - start < 3


def test_s3_credentials(
    s3: Any, config: CacheConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.put_object(Bucket="shards", Key="a", Body=b"a", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage = open_storage("s3://shards", config)
    with pytest.raises(ConfigError, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        storage.fetch("a", sha256=sha(b"a"))


def test_s3_in_forked_workers(s3: Any, config: CacheConfig) -> None:
    for name in "abcdef":
        s3.put_object(Bucket="shards", Key=name, Body=name.encode())
    storage = open_storage("s3://shards", config)
    assert isinstance(storage, RemoteFolder)
    check_workers(storage, "abcdef", [sha(name.encode()) for name in "abcdef"])


@pytest.mark.parametrize("faults", [[drop], [truncate], [status(503)] * 2, [stall], [mute]])
def test_s3_faults(
    faults: list,
    server: FaultyServer,
    s3: Any,
    config: CacheConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.files["shards/a.tar"] = CONTENT
    server.faults["shards/a.tar"].extend(faults)
    storage = open_storage("s3://shards", CacheConfig(**(vars(config) | {"timeout": 0.5})))
    start = time.monotonic()
    assert storage.fetch("a.tar", sha256=sha(CONTENT)).read_bytes() == CONTENT
    assert server.gets["shards/a.tar"] == len(faults) + 1
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("fault", "cause"), [(status(503), "HTTP 503"), (mute, "[Tt]imeout")])
def test_s3_attempts_are_not_multiplied_by_the_layers_below(
    fault: Callable,
    cause: str,
    server: FaultyServer,
    s3: Any,
    config: CacheConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.faults["shards/a.tar"].extend([fault] * 99)
    storage = open_storage("s3://shards", CacheConfig(**(vars(config) | {"timeout": 0.3})))
    with pytest.raises(ConfigError, match=f"no success in 4 attempts, the last: .*{cause}"):
        storage.fetch("a.tar", size=1, sha256="0" * 64)
    assert server.gets["shards/a.tar"] == 4
