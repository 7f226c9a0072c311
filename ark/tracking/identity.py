"""Which W&B run a folder belongs to, over every session of the run."""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger("ark")
WANDB_ID = "wandb_id.txt"
Mode = Literal["auto", "online", "offline", "off"]


@rank_zero_only
def run_id(folder: Path) -> str:
    """The id of the folder's W&B run; the first session draws it, later ones read it.

    Written whole before W&B starts, so that a run that is killed at any moment goes on as the same
    one. None on other ranks: they talk to nobody.
    """
    path = folder / WANDB_ID
    known = path.read_text() if path.is_file() else None
    if known is not None and re.fullmatch("[a-z0-9]{1,64}", known):
        return known
    if known is not None:
        log.warning("%s: %r is no id of a W&B run; a new run begins", path, known)
    drawn = secrets.token_hex(4)
    write_whole(path, drawn)
    return drawn


def write_whole(path: Path, text: str) -> None:
    """All or nothing: what is killed here leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.half")
    with half.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def wandb_mode(mode: Mode) -> str | None:
    """What `wandb.init` is told; None leaves it to WANDB_MODE, or to being online."""
    if mode in ("online", "offline"):
        return mode
    return None if os.environ.get("WANDB_MODE") or has_key() else "offline"


def has_key() -> bool:
    """Whether W&B would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    places = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        try:
            if netrc.netrc(place).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
