"""Each small recipe against a plain torch loop, written from the spec pages and nothing else.

`ark fit` runs the recipe (on tiny phantoms, with a tiny backbone), is stopped in the middle and
goes on. The loops below see the same batches and start from the same weights; after all steps
student and teacher must have the same weights, buffers included. What a detector computes of a
batch is its own affair here (tests/heads compare it with mmdet): the loops take its loss and its
features. All in float64: BatchNorm over two images makes of float32's roundings 1e-3 in 50 steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from commands import ark
from small_recipes import PASS, tiny
from torch import Tensor, nn

from ark import cli
from ark.network import Network
from ark.seeds import seed_of
from ark.types import Batch, MulticlassTarget

BatchOf = Callable[[int], Batch]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.meshgrid")]


# -- running the recipe -----------------------------------------------------------------------


class Ran:
    """What a run started from, saw and became."""

    def __init__(self, recipe: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
        fit = cli.fitting.fit
        starts: list[Network] = []

        def spied(trainer: Any, module: Any, data: Any, *rest: Any) -> None:
            starts.append(copy.deepcopy(module.network))
            self.module, self.data = module, data
            fit(trainer, module, data, *rest)

        monkeypatch.setattr(cli.fitting, "fit", spied)
        name = yaml.safe_load(recipe.read_text())["run"]["name"]
        options = ["fit", "--config", recipe, f"--run.checkpoint_every={stop}"]
        options += ["--trainer.precision=64-true"]
        ark(*options, f"--trainer.max_steps={stop}")
        ark(*options, "--ckpt_path=last", f"--run.name={name}")
        self.start = starts[0].double()
        self.batches = self.data.train_dataloader().dataset

    def batch(self, step: int) -> Batch:
        torch.manual_seed(seed_of(0, step, 0, 0))  # what dropout draws in this step
        batch: Batch = self.batches[step]
        return batch._map(lambda t: t.double() if t.is_floating_point() else t)

    def assert_equal(self, student: Network, teacher: Network) -> None:
        for who, network in (("student", student), ("teacher", teacher)):
            theirs = network.state_dict()
            for key, value in self.module.networks[who].state_dict().items():
                if key.endswith(("temperature", "thresholds")):
                    continue  # chosen after training
                assert value.dtype in (torch.float64, torch.int64)
                torch.testing.assert_close(
                    value,
                    theirs[key],
                    rtol=1e-6,
                    atol=1e-6,
                    msg=lambda m, at=f"{who} {key}": f"{at}: {m}",
                )


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# -- what all recipes share -------------------------------------------------------------------


def pooled(network: Network, images: Tensor) -> Tensor:
    """The backbone's vector after its final norm and the average over the places."""
    model = network.backbone.model
    x = (images.double() / 255 - network.backbone.mean) / network.backbone.std
    return model.forward_head(model.forward_features(x), pre_logits=True)


def move(teacher: Network, student: Network, momentum: float) -> None:
    """teacher <- m teacher + (1 - m) student, buffers too (spec foundation_x.md, fault 3)."""
    mine = student.state_dict()
    for key, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.copy_(momentum * value + (1 - momentum) * mine[key])
        else:
            value.copy_(mine[key])


def binary(logits: Tensor, target: Any) -> Tensor:
    """Mean binary cross-entropy over the known labels."""
    if isinstance(target, MulticlassTarget):
        labels = F.one_hot(target.labels, logits.shape[1]).double()
        return F.binary_cross_entropy_with_logits(logits, labels)
    each = F.binary_cross_entropy_with_logits(logits, target.labels.double(), reduction="none")
    return each[target.known].mean()


def cross_entropy(logits: Tensor, target: Any) -> Tensor:
    """Cross-entropy where one class is true, binary otherwise (Ark+)."""
    if isinstance(target, MulticlassTarget):
        return F.cross_entropy(logits, target.labels)
    return binary(logits, target)


# -- Ark and Ark+ (spec ark.md, Algorithm) ----------------------------------------------------


def train_ark(
    start: Network, batch_of: BatchOf, rounds: int, loss: Callable[[Tensor, Any], Tensor]
) -> tuple[Network, Network]:
    student, teacher = copy.deepcopy(start).train(), copy.deepcopy(start).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    tasks, step = list(student.tasks), 0
    for number in range(rounds):
        # one warm-up round from a tenth of the rate, then a cosine to 0
        rate = 0.1 if number == 0 else 0.5 * (1 + math.cos(math.pi * (number - 1) / (rounds - 1)))
        for i, task in enumerate(tasks):
            k, last = number * len(tasks) + i, rounds * len(tasks)
            m = 1 - 0.5 * (1 - 0.9) * (1 + math.cos(math.pi * k / last))
            w = (m - 0.9) * 5
            for _ in range(PASS):
                batch = batch_of(step)
                for group in optimizer.param_groups:
                    group["lr"] = 0.03 * rate
                f_s = student.projector(pooled(student, batch.images))
                with torch.no_grad():
                    f_t = teacher.projector(pooled(teacher, batch.teacher_images))
                supervised = loss(student.head(task).linear(f_s), batch.target)
                total = (1 - w) * supervised + w * ((f_s - f_t) ** 2).mean()
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                optimizer.step()
                step += 1
            with torch.no_grad():
                move(teacher, student, m)
    return student, teacher


@pytest.mark.parametrize(
    ("name", "loss"), [("ark_small", binary), ("ark_plus_small", cross_entropy)]
)
def test_ark(name: str, loss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 5
    ran = Ran(tiny(name, tmp_path, rounds), stop=2 * PASS * 2 + 3, monkeypatch=monkeypatch)
    assert ran.module.cycle.total_steps == rounds * 2 * PASS >= 50
    ran.assert_equal(*train_ark(ran.start, ran.batch, rounds, loss))


# -- Foundation X and X+ (spec foundation_x.md) -----------------------------------------------


def phases(network: Network, task: str, plus: bool) -> Iterator[tuple[int, list[nn.Module]]]:
    """(steps, what stands still) of a task: locked for half a pass, released for a whole one."""
    kind = network.tasks[task].kind
    rest = [network.backbone, *network.shared.values()]
    rest += [head for key, head in network.heads_by_key().items() if key != task]
    if plus or kind == "segmentation":  # only this task's own layers train
        yield PASS // 2, rest
    elif kind == "detection":  # backbone and localization encoder stand still
        yield PASS // 2, [network.backbone, network.shared["detector_encoder"]]
    yield PASS, []


def losses(student: Network, teacher: Network, task: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """(of the labels, of the comparison with the teacher)."""
    head, kind = student.head(task), student.tasks[task].kind
    if kind in ("multilabel", "multiclass"):
        f_s = pooled(student, batch.images)
        with torch.no_grad():
            f_t = pooled(teacher, batch.teacher_images)
        return cross_entropy(head.linear(f_s), batch.target), F.mse_loss(f_s, f_t)
    features, output = student.run(task, batch.images, batch.target)
    with torch.no_grad():
        seen, theirs = teacher.run(task, batch.teacher_images, like=output)
    supervised = sum(head.loss(output, batch.target).values())
    if kind == "segmentation":
        pairs = [(features.maps[-1], seen.maps[-1]), (output.decoded, theirs.decoded)]
        pairs = [(F.normalize(a, dim=1), F.normalize(b, dim=1)) for a, b in pairs]
    else:
        mine = head.consistency(features, output)
        other = teacher.head(task).consistency(seen, theirs)
        assert len(mine) == 2  # decoder states and encoder tokens, half each
        pairs = [(mine[name], other[name]) for name in mine]
    return supervised, sum(0.5 * ((a - b) ** 2).mean() for a, b in pairs)


def groups(network: Network) -> list[dict[str, Any]]:
    """Backbone and classification heads at a tenth of the rate; vectors are not decayed."""
    found = []
    for name, parameter in network.named_parameters():
        key = "/".join(name.split(".")[1].split("/"))
        slow = name.startswith("backbone.") or (
            name.startswith("heads.") and network.tasks[key].kind.startswith("multi")
        )
        decay = 1e-4 if parameter.ndim > 1 else 0.0
        found.append(
            {"params": [parameter], "base": 2e-3 * (0.1 if slow else 1), "weight_decay": decay}
        )
    return found


def train_foundation_x(
    start: Network, batch_of: BatchOf, cycles: int, plus: bool
) -> tuple[Network, Network]:
    student, teacher = copy.deepcopy(start), copy.deepcopy(start).eval()
    optimizer = torch.optim.AdamW(groups(student), lr=1.0)
    done, total, step = 0, cycles * len(student.tasks), 0
    for _ in range(cycles):
        for task in student.tasks:
            done += 1
            falling = min(max((done - 2) / (total - 2), 0), 1)
            # the paper ends at 0, which its last task of 3000 cannot use; the small recipe does not
            rate = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * falling))
            rate = rate if done >= 2 else done / 2
            for length, locked in phases(student, task, plus):
                student.train().requires_grad_(True)
                for module in locked:
                    module.eval().requires_grad_(False)
                for _ in range(length):
                    batch = batch_of(step)
                    for group in optimizer.param_groups:
                        group["lr"] = group["base"] * rate
                    supervised, agreement = losses(student, teacher, task, batch)
                    loss = 0.5 * supervised
                    if agreement.requires_grad:
                        loss = loss + 0.5 * agreement
                    boxes = student.tasks[task].kind == "detection"
                    if boxes:
                        encoder = student.shared["detector_encoder"]
                        loss = loss + 1e-4 * sum(p.norm() for p in encoder.parameters())
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    if boxes:
                        nn.utils.clip_grad_norm_(student.parameters(), 0.1)
                    optimizer.step()
                    step += 1
                with torch.no_grad():
                    move(teacher, student, 0.8)
    return student, teacher


@pytest.mark.parametrize("name", ["foundation_x_small", "foundation_x_plus_small"])
def test_foundation_x(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles, plus = 2, "plus" in name
    ran = Ran(tiny(name, tmp_path, cycles), stop=11, monkeypatch=monkeypatch)
    assert ran.module.cycle.total_steps >= 50
    ran.assert_equal(*train_foundation_x(ran.start, ran.batch, cycles, plus))
