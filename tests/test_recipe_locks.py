"""Which parts of the network move in which phase of a recipe, as the specs' tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ark
from pytorch_lightning.callbacks import Callback
from small_recipes import tiny

from ark import cli

FINDINGS, BOXES, ORGANS, DIAGNOSIS = (
    "tiny_findings/findings", "tiny_boxes/boxes", "tiny_organs/organs", "tiny_organs/diagnosis",
)  # fmt: skip
X_SHARED = {"shared.detector_encoder", "shared.masks"}
ARK = [
    (task, "release", {"backbone", "projector", f"heads.{task}"}) for task in (FINDINGS, DIAGNOSIS)
]
FOUNDATION_X = [  # spec foundation_x.md, Lock-Release, column X
    (FINDINGS, "release", {"backbone", f"heads.{FINDINGS}"}),
    (BOXES, "lock", {f"heads.{BOXES}"}),
    (BOXES, "release", {"backbone", "shared.detector_encoder", f"heads.{BOXES}"}),
    (ORGANS, "lock", {f"heads.{ORGANS}"}),
    (ORGANS, "release", {"backbone", "shared.masks", f"heads.{ORGANS}"}),
    (DIAGNOSIS, "release", {"backbone", f"heads.{DIAGNOSIS}"}),
]
FOUNDATION_X_PLUS = [  # column X+
    (FINDINGS, "lock", {f"heads.{FINDINGS}"}),
    (FINDINGS, "release", {"backbone", f"heads.{FINDINGS}"}),
    (BOXES, "lock", {f"heads.{BOXES}"}),
    (
        BOXES,
        "release",
        {"backbone", "shared.detector_encoder", "shared.detector_decoder", f"heads.{BOXES}"},
    ),
    (ORGANS, "lock", {f"heads.{ORGANS}"}),
    (ORGANS, "release", {"backbone", "shared.masks", f"heads.{ORGANS}"}),
    (DIAGNOSIS, "lock", {f"heads.{DIAGNOSIS}"}),
    (DIAGNOSIS, "release", {"backbone", f"heads.{DIAGNOSIS}"}),
]
TABLES = {
    "ark_small": ARK,
    "ark_plus_small": ARK,
    "foundation_x_small": FOUNDATION_X,
    "foundation_x_plus_small": FOUNDATION_X_PLUS,
}


class Movement(Callback):
    """What of student and teacher moved in each phase, buffers included."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, str, set[str], set[str]]] = []
        self.before: dict[str, torch.Tensor] = {}

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        return {
            f"{who}.{name}": value.clone()
            for who, network in module.networks.items()
            for name, value in network.state_dict().items()
        }

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, idx: int) -> None:
        if module.cycle.at(trainer.global_step).phase_step == 0:
            self.before = self.state(module)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        at = module.cycle.at(trainer.global_step - 1)
        if at.ends_phase:
            now = self.state(module)
            moved = {name for name, was in self.before.items() if not torch.equal(was, now[name])}
            student, teacher = (
                {self.part(n.removeprefix(f"{who}.")) for n in moved if n.startswith(who)}
                for who in ("student", "teacher")
            )
            state = "release" if at.phase.state == "release" else "lock"
            self.phases.append((at.phase.task, state, student, teacher))

    def part(self, name: str) -> str:
        depth = 2 if name.startswith(("heads.", "shared.")) else 1
        return ".".join(name.split(".")[:depth])


@pytest.mark.parametrize("name", TABLES)
def test_what_moves_in_each_phase(name: str, tmp_path: Path, monkeypatch) -> None:
    fit, movement = cli.fitting.fit, Movement()

    def watched(trainer: Any, *rest: Any) -> None:
        trainer.callbacks.append(movement)  # after the one that moves the teacher
        fit(trainer, *rest)

    monkeypatch.setattr(cli.fitting, "fit", watched)
    ark("fit", "--config", tiny(name, tmp_path, cycles=2))
    expected = TABLES[name]
    found = [(task, state, student) for task, state, student, _ in movement.phases]
    assert found == expected * 2
    for index, (task, state, student, teacher) in enumerate(movement.phases):
        # the teacher follows what moved; what moved before may still be on its way
        assert student <= teacher, (index, task, state)
        seen = {part for _, _, parts in expected[: index + 1] for part in parts}
        assert teacher <= seen
