"""Files of the web: resumed where they broke off, verified, and kept."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from ark.errors import ConfigError
from ark.published.config import sha256

_CHUNK = 1 << 20
_WAIT = 30.0  # seconds for a server to say anything
ATTEMPTS = 5


class Broken(OSError):
    """The connection ended before the file did."""


def download(url: str, path: Path, digest: str, size: int | None = None) -> Path:
    """`path`, with the content of `url`. What an earlier call fetched of it is kept.

    Safe to call from several processes at once.

    Args:
        digest: sha256 of the whole file, in hexadecimal.
        size: bytes, for the progress bar.

    Raises:
        ConfigError: http or https only; not found; or its bytes are not those of `digest`.
    """
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{url}: expected a URL of http or https")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return path
        half = path.with_name(f"{path.name}.part")
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((Broken, URLError, ConnectionError, TimeoutError)),
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_exponential(0.5, max=20),
                reraise=True,
            ):
                with attempt:
                    _fetch(url, half, size)
        except OSError as error:
            raise ConfigError(
                f"{url}: cannot be fetched: {error}; run it again to go on"
            ) from error
        _verify(url, half, digest)
        os.replace(half, path)
    return path


def _fetch(url: str, half: Path, size: int | None) -> None:
    """Appends what is missing."""
    have = half.stat().st_size if half.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(request, timeout=_WAIT)
    except HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise ConfigError(f"{url}: the server says {error.code} {error.reason}") from error
    with answer, half.open("ab" if answer.status == 206 else "wb") as file:
        have = file.tell()
        rest = answer.headers.get("Content-Length")
        total = size or (have + int(rest) if rest else None)
        with tqdm(desc=half.stem, total=total, initial=have, unit="B", unit_scale=True) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if rest is not None and file.tell() < have + int(rest):
            raise Broken(f"the connection ended after {file.tell():,} bytes")


def _verify(url: str, half: Path, digest: str) -> None:
    found = sha256(half)
    if found != digest:
        half.unlink()
        raise ConfigError(
            f"{url}: sha256 is {found}, expected {digest}; it was changed, and is not used"
        )
