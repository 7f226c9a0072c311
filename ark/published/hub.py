"""Hubs that speak the Hugging Face protocol. HF_ENDPOINT and HF_TOKEN are its client's own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ark.errors import ConfigError
from ark.published.config import CARD, CONFIG, WEIGHTS

if TYPE_CHECKING:
    from ark.published.model import Model


def fetch(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The folder in the client's cache; fetches what is missing, and goes on with half files.

    Raises:
        ConfigError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    refused = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    files = [CONFIG, WEIGHTS, CARD]
    try:
        return Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=files)
        )
    except refused as error:
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"{repo_id}: no such folder here, and no model of this name{at} could be fetched from "
            f"the hub: {str(error).strip().splitlines()[0]}"
        ) from error


def push(
    model: Model,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Model of Ark",
    token: str | None = None,
) -> str:
    """Makes the repository where it is missing and uploads a model's three files.

    Args:
        private: of a repository that is made: patients' data need a decision before others see it.
        revision: branch, made where it is missing.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision
        )
    return str(done.commit_url)
