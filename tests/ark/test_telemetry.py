from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ark.cycle import Cycle, Phase
from ark.surgery import CAGrad
from ark.telemetry import WIDTH, GradientTelemetry
from ark.types import ConfigError

A, B = "toy/a", "toy/b"
PHASES = [Phase(A, steps=2), Phase(B, steps=2), Phase(A, steps=1, lock=["backbone"]),
          Phase(tasks=[A, B], steps=2)]  # fmt: skip
STEPS = 14  # two cycles


class Toy(pl.LightningModule):
    """What telemetry reads of an ArkModule, and a record of each task's gradient."""

    def __init__(self, surgery: bool = False, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.ModuleDict(
            {
                "backbone": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout)),
                A.replace("/", "_"): nn.Linear(6, 1),
                B.replace("/", "_"): nn.Linear(6, 1),
            }
        )
        self.cycle = Cycle(PHASES, [2, 2, 1, 2], cycles=2)
        self.surgery = surgery
        self.task_losses: dict[str, Tensor] = {}
        self.rows: list[dict[str, np.ndarray]] = []  # of each micro-batch, before clipping

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        micro = batch_idx % self.trainer.accumulate_grad_batches
        generator = torch.Generator().manual_seed(100 * self.global_step + micro)
        images = torch.randn(4, 4, generator=generator)  # of the step, so that a resume sees them
        phase = self.cycle.at(self.global_step).phase
        self.network.requires_grad_(True)
        if phase.lock:
            self.network["backbone"].requires_grad_(False)
        trunk = [p for p in self.network["backbone"].parameters() if p.requires_grad]
        self.task_losses = {task: self._loss(task, images) for task in phase.members}
        self.rows.append(
            {
                task: np.concatenate([
                    g.numpy().ravel() for g in torch.autograd.grad(loss, trunk, retain_graph=True)
                ])
                for task, loss in self.task_losses.items()
                if trunk
            }
        )  # fmt: skip
        losses = list(self.task_losses.values())
        if self.surgery:
            return CAGrad(0.5).combine(losses, self.network.parameters())
        return torch.stack(losses).sum()

    def _loss(self, task: str, images: Tensor) -> Tensor:
        output = self.network[task.replace("/", "_")](self.network["backbone"](images))
        return (output - (2.0 if task == A else -1.0)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=0.05)


class Record(Logger):
    name, version = "record", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        found = {k: v for k, v in metrics.items() if k.startswith("gradient/")}
        assert found or not metrics
        self.rows.append((step, found))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def fit(
    module: Toy,
    telemetry: GradientTelemetry | None,
    steps: int = STEPS,
    accumulate: int = 1,
    ckpt_path: Path | None = None,
    save: Path | None = None,
) -> list[tuple[int, dict[str, float]]]:
    record = Record()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=record,
        callbacks=[telemetry] if telemetry else [],
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(5)
    trainer.fit(module, DataLoader(range(STEPS * accumulate)), ckpt_path=ckpt_path)
    if save:
        trainer.save_checkpoint(save)
    return record.rows


def expected(
    module: Toy, every: int, momentum: float, accumulate: int
) -> list[tuple[int, dict[str, float]]]:
    """Norms and cosines of whole gradients in numpy."""
    logged, mean, last = [], None, {}
    for step in range(STEPS):
        at, values, new = module.cycle.at(step), {}, []
        for task, ran in zip(at.phase.members, at.task_steps, strict=True):
            micro = module.rows[step * accumulate : (step + 1) * accumulate]
            if ran % every or task not in micro[0]:
                continue
            g = np.mean([rows[task] for rows in micro], axis=0)
            values[f"gradient/{task}/norm"] = np.linalg.norm(g)
            past = {"": mean} | {f"/{key}": one for key, one in last.items() if key != task}
            for name, one in past.items():
                if one is not None:
                    cosine = g @ one / np.linalg.norm(g) / np.linalg.norm(one)
                    values[f"gradient/{task}/cosine{name}"] = cosine
            new.append((task, g))
        for task, g in new:
            mean = g if mean is None else momentum * mean + (1 - momentum) * g
            last[task] = g
        if values:
            logged.append((step, values))
    return logged


@pytest.mark.parametrize(
    ("every", "accumulate", "surgery"), [(1, 1, False), (2, 1, True), (3, 2, False)]
)
def test_norms_and_cosines_are_those_of_the_gradients(
    every: int, accumulate: int, surgery: bool
) -> None:
    module = Toy(surgery)
    telemetry = GradientTelemetry(every, momentum=0.7, pairs=True)
    found = fit(module, telemetry, accumulate=accumulate)
    wanted = expected(module, every, 0.7, accumulate)
    assert [step for step, _ in found] == [step for step, _ in wanted]
    for (step, mine), (_, theirs) in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5), step
    assert any(f"gradient/{B}/cosine/{A}" in values for _, values in found)
    if every == 1:
        assert 4 not in {step for step, _ in found}, "the backbone was locked"


@pytest.mark.parametrize("surgery", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_bit_equal_with_and_without(surgery: bool, accumulate: int) -> None:
    watched, alone = Toy(surgery), Toy(surgery)
    fit(watched, GradientTelemetry(every=2, pairs=True), accumulate=accumulate)
    fit(alone, None, accumulate=accumulate)
    for mine, theirs in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(mine, list(Toy().parameters())[-1]), "nothing moved"


def test_pairs_are_logged_only_on_request_and_every_is_counted_by_task() -> None:
    found = fit(Toy(), GradientTelemetry(every=4))
    # task a ran 0, 1, 2, 3, 4 before steps 0, 1, 4, 5, 6; task b 0, 1, 2, 3 before 2, 3, 5, 6
    assert {step: sorted(values) for step, values in found} == {
        0: [f"gradient/{A}/norm"],
        2: [f"gradient/{B}/cosine", f"gradient/{B}/norm"],
        6: [f"gradient/{A}/cosine", f"gradient/{A}/norm"],
        9: [f"gradient/{B}/cosine", f"gradient/{B}/norm"],
    } | {12: sorted(dict(found)[12])}


def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    whole = fit(Toy(dropout=0), GradientTelemetry(every=1, pairs=True))
    checkpoint = tmp_path / "last.ckpt"
    fit(Toy(dropout=0), GradientTelemetry(every=1, pairs=True), steps=8, save=checkpoint)
    rest = fit(Toy(dropout=0), GradientTelemetry(every=1, pairs=True), ckpt_path=checkpoint)
    assert rest == [row for row in whole if row[0] >= 8]


def test_sketches_keep_cosines_where_gradients_are_longer_than_they() -> None:
    telemetry = GradientTelemetry()
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(9 * WIDTH + 17, generator=generator)
    for share in (-0.8, -0.1, 0.0, 0.3, 0.95):
        other = share * one + (1 - share**2) ** 0.5 * torch.randn(one.shape, generator=generator)
        sketches = telemetry._sketch(one), telemetry._sketch(other)
        assert sketches[0].shape == (WIDTH,)
        found = torch.cosine_similarity(*sketches, dim=0)
        assert float(found) == pytest.approx(share, abs=4 / WIDTH**0.5)
    ones = torch.zeros(2, len(one))
    ones[0, :WIDTH], ones[1, WIDTH : 2 * WIDTH] = 1, 1  # nothing in common but the places' rest
    apart = torch.cosine_similarity(*(telemetry._sketch(row) for row in ones), dim=0)
    assert float(apart) == pytest.approx(0, abs=4 / WIDTH**0.5)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_a_wrong_setting_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"GradientTelemetry: every .*expected a step at least"):
        GradientTelemetry(**wrong)
