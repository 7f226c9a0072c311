"""The first samples of each task of an evaluation, to be shown when it ends."""

from __future__ import annotations

from typing import Any

from ark.scores import WHO
from ark.types import Batch, Prediction


class FirstSamples:
    """Keeps the first samples of each task, on the CPU."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def add(self, batch: Batch, predictions: dict[str, Prediction]) -> None:
        """Of predictions by student and teacher; those of one alone are passed over."""
        kept = self.kept.setdefault(batch.task, [])
        missing = self.count - len(kept)
        if set(predictions) != set(WHO) or missing <= 0:
            return
        few = batch.to("cpu")
        shown = {"truth": few.target, **{who: p.to("cpu") for who, p in predictions.items()}}
        for index, key in enumerate(batch.keys[:missing]):
            mine = {name: value.item(index) for name, value in shown.items()}
            kept.append({"key": key, "image": few.images[index], **mine})
