"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("ARK_DATA", str(ROOT.parent / "shared" / "data"))
torch.set_num_threads(1)  # two threads on two busy cores are slower than one


@pytest.fixture
def real_data() -> Path:
    """The folder of real radiographs; the test is skipped where it is absent."""
    folder = Path(os.environ["ARK_DATA"])
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no real data in {folder}; set ARK_DATA to the folder with manifest.json")
    return folder
