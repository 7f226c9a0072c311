"""Files of a dataset's folder, wherever it is: a local path, http(s) or s3.

What an index names comes from a stranger: a name is a plain relative path or refused, a URL is one
of four schemes or refused, and nothing here starts a program. Remote files are downloaded whole
into a `datamodules.tars.cache.Cache`, whose file names are hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import ssl
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from fsspec import filesystem
from fsspec.asyn import sync

from ark.types import ConfigError
from datamodules.tars.cache import Cache, CacheConfig, Interrupted, RemoteFile

ALLOWED = "a local path, file://, http://, https:// or s3://bucket/folder"
CHUNK = 1 << 20  # bytes
OPEN_TRIES = 10
VERSION = ("ETag", "Last-Modified", "LastModified", "VersionId", "Content-MD5", "Digest", "size")

Names = list[str]


class Storage(ABC):
    """A folder of files. Can be pickled into workers: holds no connection that could be shared."""

    where: str  # the folder or URL without credentials, for messages

    @abstractmethod
    def fetch(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local file with the content of `name`; downloaded first where it is remote.

        Open it at once, or use `open_file`: a remote file's copy may be evicted by other downloads
        (FileNotFoundError: call again). A descriptor that is open stays good.

        Args:
            name: relative to the folder, with `/` between parts.
            size: expected bytes.
            sha256: expected checksum, hexadecimal.

        Raises:
            ConfigError: a refused name, no such file, another size or checksum, or no success
                after all attempts.
        """

    @abstractmethod
    def list(self) -> Names:
        """Names of the files directly in the folder, sorted.

        Raises:
            ConfigError: no such folder, or http(s), which has no listing to rely on.
        """


def open_storage(location: str | Path, cache: CacheConfig | None = None) -> Storage:
    """The storage of a local folder, a file://, http:// or https:// URL or s3://bucket/folder.

    Opens nothing yet. `cache` is for remote ones; None means `CacheConfig()`.

    Raises:
        ConfigError: any other location: `pipe:`, chains with `::`, an s3 URL without bucket, ...
    """
    text = str(location)
    with suppress(ValueError, RuntimeError):  # no URL; `~` of nobody
        parts = urlsplit(text)
        if not parts.scheme and _is_local(text):
            return LocalFolder(Path(text))
        file = unquote(parts.path)
        if re.fullmatch(r"file://(localhost)?/[^?#]*", text) and _is_local(file):
            return LocalFolder(Path(file))
        if text.isprintable() and _is_remote(parts):
            return RemoteFolder(parts, cache or CacheConfig())
    raise ConfigError(
        f"shards location {_refused(text)!r}: expected {ALLOWED}; a local folder whose name looks "
        "like a URL is written ./NAME"
    )


def open_file(
    storage: Storage, name: str, *, size: int | None = None, sha256: str | None = None
) -> int:
    """A descriptor (read only) of `storage.fetch(name)`; good even when the file is evicted."""
    for _ in range(OPEN_TRIES):
        try:
            return os.open(storage.fetch(name, size=size, sha256=sha256), os.O_RDONLY)
        except FileNotFoundError:  # evicted between the two calls
            continue
    raise ConfigError(
        f"{storage.where}/{name}: evicted {OPEN_TRIES} times before it could be opened; "
        "raise cache.gigabytes"
    )


def check_name(name: str) -> str:
    """`name`, if it is a plain relative path that no storage can take for anything else."""
    if not isinstance(name, str) or len(name) > 1024 or not all(map(_is_plain, name.split("/"))):
        raise ConfigError(
            f"file name {str(name)[:200]!r}: expected a relative path of letters, digits, spaces "
            "and '._-', with '/' between parts, no '..', at most 255 bytes a part; rename the file "
            "or get the index from a source you trust"
        )
    return name


def _is_plain(part: str) -> bool:
    letters = all(c in "._- " or unicodedata.category(c)[0] in "LMN" for c in part)
    return letters and part not in ("", ".", "..") and len(part.encode()) <= 255


class LocalFolder(Storage):
    """A folder of this machine, itself perhaps a symlink. No file of it may lead out of it.

    Sizes are compared, checksums are not: every start of a run would read all shards for that.
    `ark shards validate` does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.where = str(self.folder)

    def fetch(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        path = self.folder / check_name(name)
        try:
            real = path.resolve()
            inside = real.is_relative_to(self.folder.resolve())
            found = real.stat().st_size if real.is_file() else None
        except (OSError, RuntimeError) as error:  # a loop of symlinks, no permission
            raise ConfigError(f"{path}: {error}; copy the folder again") from error
        if not inside:
            raise ConfigError(f"{path}: a link out of {self.where}; copy the file into the folder")
        if found is None:
            raise ConfigError(f"{path}: no such file; copy the folder again, whole")
        if size not in (None, found):
            raise ConfigError(f"{path}: {found} bytes, expected {size}; copy the folder again")
        return real

    def list(self) -> Names:
        if not self.folder.is_dir():
            raise ConfigError(f"{self.where}: no such folder; expected {ALLOWED}")
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())


class RemoteFolder(Storage):
    """A folder behind http(s) or s3, downloaded file by file into the cache.

    With `sha256`, the cached file is used without asking the server. Without, one request asks for
    the file's version (ETag, date, size), and a changed file is downloaded again.
    """

    def __init__(self, location: SplitResult, config: CacheConfig) -> None:
        self._location, self._config = location, config
        self._cache = Cache(config)
        self._systems: dict[int, Any] = {}  # by process: after a fork, the parent's is unusable
        host = location.netloc.rpartition("@")[2]
        self.where = f"{location.scheme}://{host}{location.path}".rstrip("/")

    def fetch(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        shown = f"{self.where}/{check_name(name)}"
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ConfigError(f"{shown}: sha256 is {sha256!r}; expected 64 hexadecimal digits")
        try:
            return self._fetch(name, shown, size, sha256 and sha256.lower())
        except OSError as error:
            raise ConfigError(
                f"{shown}: the cache failed with {error}; make room in {self._cache.folder}, or "
                "name another folder in cache.folder or $ARK_CACHE"
            ) from error

    def list(self) -> Names:
        if self._location.scheme != "s3":
            raise ConfigError(
                f"{self.where}: http(s) has no listing to rely on; name files as index.json does"
            )
        folder = self._url("").rstrip("/")
        found = self._ask("listdir", folder, self.where)  # fsspec's name of a detailed `ls`
        names = (file["name"] for file in found if file["type"] == "file")
        inside = (name.partition(f"{folder}/")[2] for name in names)
        return sorted(name for name in inside if name)  # "": the folder's own, empty object

    def _fetch(self, name: str, shown: str, size: int | None, sha256: str | None) -> Path:
        target = self._target(sha256, name) if sha256 else None
        if target and self._cache.use(target, size):
            return target
        if target is None or size is None:
            version, size = self._version(name, shown, size)
            target = target or self._target(version, name, "url-")
        chunks = partial(self._chunks, name, shown)
        self._cache.fetch(RemoteFile(shown, target, size, sha256, chunks))
        return target

    def _target(self, key: str, name: str, kind: str = "") -> Path:
        suffix = re.search(r"(\.[A-Za-z0-9]{1,16})?\Z", name)
        return self._cache.folder / key[:2] / f"{kind}{key}{suffix[0] if suffix else ''}"

    def _version(self, name: str, shown: str, size: int | None) -> tuple[str, int | None]:
        """A key of the file as the server has it now, and its size where the server says it."""
        info = self._ask("info", self._url(name), shown)
        if info["type"] != "file":
            raise ConfigError(f"{shown}: a folder; expected a file")
        found = info.get("size")
        if None not in (size, found) and size != found:
            raise ConfigError(f"{shown}: {found} bytes, expected {size}; upload the file again")
        version = {part: str(info[part]) for part in VERSION if info.get(part) is not None}
        # a server that says nothing gets a key that is never found again
        text = json.dumps([self._url(name), version or secrets.token_hex()])
        return hashlib.sha256(text.encode()).hexdigest(), found if size is None else size

    def _chunks(self, name: str, shown: str) -> Generator[bytes, None, None]:
        with self._asking(shown) as system:
            file = sync(system.loop, system.open_async, self._url(name), "rb", size=0)
            try:
                while chunk := sync(system.loop, _read, file):
                    yield chunk
            finally:
                body = file.r
                sync(system.loop, file.close)
                if body is not None:  # s3fs leaves it open
                    system.loop.call_soon_threadsafe(body.close)

    def _ask(self, question: str, url: str, shown: str) -> Any:
        def ask() -> Any:
            with self._asking(shown) as system:
                return getattr(system, question)(url)

        return self._cache.retried(ask, shown)

    @contextmanager
    def _asking(self, shown: str) -> Iterator[Any]:
        """This process's file system, whose errors become Interrupted or ConfigError."""
        import aiohttp
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        kinds = (OSError, aiohttp.ClientError, BotoCoreError, ClientError, ResponseParserError)
        try:
            if os.getpid() not in self._systems:
                self._systems[os.getpid()] = self._connect()
            yield self._systems[os.getpid()]
        except kinds as error:  # `from None`: their texts may hold credentials
            raise _judged(error, shown) from None

    def _connect(self) -> Any:
        import aiohttp

        seconds = self._config.timeout
        own = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._location.scheme == "s3":
            once = {"total_max_attempts": 1}  # `Cache.retried` counts the attempts
            limits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": once}
            system = filesystem("s3", config_kwargs=limits, **own)
            system.retries = 1
            return system
        client = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
            "headers": {"Accept-Encoding": "identity"},  # bytes as they are stored, to be hashed
            "auto_decompress": False,
            "trust_env": True,
        }
        return filesystem("http", client_kwargs=client, **own)

    def _url(self, name: str) -> str:
        folder = self._location.path.rstrip("/")
        if self._location.scheme == "s3":
            return f"{self._location.netloc}{folder}/{name}"
        return self._location._replace(path=f"{folder}/{quote(name)}").geturl()

    def __repr__(self) -> str:
        return f"RemoteFolder({self.where!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_systems": {}}


async def _read(file: Any) -> bytes:
    """Up to CHUNK bytes of a fsspec stream: a crossing between threads for each costs little."""
    parts, missing = [], CHUNK
    while missing > 0 and (part := await file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _is_local(folder: str) -> bool:
    return bool(folder) and folder.isprintable() and "::" not in folder and "://" not in folder


def _is_remote(parts: SplitResult) -> bool:
    """Whether a URL may be asked. Raises ValueError for a port that is none."""
    if "::" in parts.path:
        return False
    if parts.scheme == "s3":
        folders = {".", ".."}.isdisjoint(parts.path.split("/"))
        bucket = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", parts.netloc)
        return bool(bucket) and folders and not parts.query + parts.fragment
    host = parts.hostname and parts.port != 0 and re.fullmatch(r"[^\s\\]+", parts.netloc)
    return parts.scheme in ("http", "https") and bool(host) and not parts.fragment


def _refused(location: str) -> str:
    """As much of a location as a message may show; what it means is not known."""
    return re.sub(r"\?.*", "", re.sub(r"//.*@", "//", location, flags=re.S), flags=re.S)[:200]


def _judged(error: BaseException, shown: str) -> Exception:
    """What a network error means: Interrupted where another attempt may succeed."""
    import aiohttp
    from botocore import exceptions as boto

    refused = (PermissionError, boto.NoCredentialsError, boto.PartialCredentialsError)
    hopeless = (
        *refused,
        *(FileNotFoundError, ssl.SSLCertVerificationError, boto.ParamValidationError),
        *(aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
    )
    status = _status(error)
    while status is None and error.__cause__ is not None:  # fsspec hides causes
        error = error.__cause__
        status = _status(error)
    text = re.sub(r"\?[^\s'\")]*|(?<=//)[^/\s]*@", "", " ".join(str(error).split()))
    said = f"HTTP {status}" if status else f"{type(error).__name__}: {text}"
    if status in (408, 425, 429) or (status or 0) >= 500:
        return Interrupted(said)
    if status is None and not isinstance(error, hopeless):
        return Interrupted(said)
    fix = "check the folder's URL"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        said = "not found"
        fix = "check the folder's URL, and that the file was uploaded"
    elif status in (401, 403, 407) or isinstance(error, refused):
        fix = (
            "check that it exists, and the credentials (s3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket; http: in the URL)"
        )
    return ConfigError(f"{shown}: {said}; {fix}")


def _status(error: BaseException) -> int | None:
    """The HTTP status that aiohttp or botocore hold in an error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None)
