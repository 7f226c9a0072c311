"""What is logged beside losses and scores."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.callbacks import Callback

from ark.tracking.panels import Panels
from ark.tracking.tables import ClassTables, ForgettingTable
from ark.tracking.throughput import Throughput


def tracking_callbacks(folder: Path, panels: int) -> list[Callback]:
    """They belong behind Forgetting and before checkpoints.

    Args:
        folder: of the run.
        panels: samples of a task in the panels of each validation; 0: none.
    """
    return [Panels(panels), ClassTables(), ForgettingTable(folder), Throughput()]
