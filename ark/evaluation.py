"""The half of the LightningModule that scores student and teacher."""

from __future__ import annotations

from functools import partial

import pytorch_lightning as pl

from ark.crops import mean_of_ten_crops
from ark.network import Network
from ark.scores import WHO, Intervals, Scores
from ark.teacher import Teacher
from ark.types import Batch, Prediction


class Evaluation(pl.LightningModule):
    """Validation and test: every head of student and teacher on the tasks' splits."""

    network: Network
    teacher: Teacher

    def __init__(self) -> None:
        super().__init__()
        self.scored: tuple[str, ...] = WHO  # whom an evaluation scores
        self.calibrating = False  # whether a validation lets the heads choose their thresholds
        self.draws = 0  # bootstrap draws of a test; 0: no intervals
        self.intervals: dict[str, Intervals] = {}  # of the last test

    def on_validation_epoch_start(self) -> None:
        if self.calibrating:
            for network in self.networks.values():
                for head in network.heads_by_key().values():
                    head.uncalibrate()
        self.scores = Scores(self.networks, self.scored, self.device)

    def on_test_epoch_start(self) -> None:
        self.scores = Scores(self.networks, self.scored, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Prediction]:
        return self.evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Prediction]:
        return self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.scores.compute("val"))
        self._measure_doubt()
        if self.calibrating:
            self.scores.calibrate()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.scores.compute("test"))
        self._measure_doubt()

    def _measure_doubt(self) -> None:
        self.intervals = self.scores.intervals(self.draws) if self.draws else {}

    def evaluate(self, batch: Batch) -> dict[str, Prediction]:
        """Scores student and teacher on a batch; returns their predictions, by name."""
        predictions: dict[str, Prediction] = {}
        if not batch.keys:  # all of its samples were skipped
            return predictions
        for who in self.scored:
            predictions[who] = self._predict(self.networks[who], batch)
            self.scores.update(who, batch, predictions[who])
        return predictions

    def _predict(self, network: Network, batch: Batch) -> Prediction:
        """Of the images as they are, or of ten crops where they are larger than the network's
        input: `data.ten_crop` asked for a margin."""
        predict, size = partial(network.predict, batch.task), network.backbone.image_size
        if batch.images.shape[-1] > size:
            return mean_of_ten_crops(predict, batch.images, size)
        return predict(batch.images)

    @property
    def networks(self) -> dict[str, Network]:
        return {"student": self.network, "teacher": self.teacher.network}
