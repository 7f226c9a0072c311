from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ark.agvm import AGVM, AGVMConfig, halves, module_parameters
from ark.network import Network
from ark.optim import check_covered, parameter_groups
from ark.types import ConfigError
from toys import HEADS, SIZE, make_batch, make_task

CONFIG = AGVMConfig(interval=3, warmup=6, momentum=0.8)
LR, BETAS, EPS = 0.05, (0.9, 0.99), 1e-8


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parts = {
        "backbone": nn.Linear(4, 6),
        "neck": nn.Linear(6, 5),
        "head": nn.Linear(5, 2),
        "idle": nn.Linear(5, 2),  # another task's head: it is in no step
    }
    return nn.ModuleDict(parts).double()


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    features = torch.tanh(network["backbone"](images))
    return (network["head"](torch.tanh(network["neck"](features))) - labels).square().mean()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    return images, torch.randn(8, 2, dtype=torch.float64, generator=generator)


def make(network: nn.Module, adam: bool) -> tuple[AGVM, torch.optim.Optimizer]:
    agvm = AGVM(CONFIG, {name: list(m.parameters()) for name, m in network.named_children()})
    groups = agvm.split([{"params": list(network.parameters()), "lr": LR, "name": "rest"}])
    kind = torch.optim.Adam(groups, betas=BETAS, eps=EPS) if adam else torch.optim.SGD(groups)
    return agvm, kind


def run(
    agvm: AGVM, network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, how: str
) -> list[dict[str, float]]:
    """As a trainer would: gradients accumulate over 4 micro-batches, or the batch is halved."""
    factors = []
    for step in steps:
        optimizer.zero_grad()
        images, labels = batch(step)
        if how == "accumulate":
            for micro in range(4):
                part = slice(2 * micro, 2 * micro + 2)
                (loss_of(network, images[part], labels[part]) / 4).backward()
                if agvm.estimates(step, step) and micro == 1:
                    agvm.snapshot()
        elif agvm.estimates(step, step):
            half = loss_of(network, images[:4], labels[:4]) / 2
            first = agvm.first_half(half, network.parameters())
            (first + loss_of(network, images[4:], labels[4:]) / 2).backward()
        else:
            loss_of(network, images, labels).backward()
        agvm.scale_rates(optimizer)
        optimizer.step()
        agvm.restore_rates()
        factors.append(dict(agvm.factors))
    return factors


class ByHand:
    """The formulas of spec agvm.md in numpy; torch gives only the two halves' gradients."""

    def __init__(self, network: nn.Module, adam: bool) -> None:
        self.network, self.adam = network, adam
        self.mu = {name: 1.0 for name, _ in network.named_children()}
        self.m = {n: np.zeros(p.shape) for n, p in network.named_parameters()}
        self.v = {n: np.zeros(p.shape) for n, p in network.named_parameters()}
        self.count = 0

    def step(self, step: int) -> None:
        images, labels = batch(step)
        names = [n for n, _ in self.network.named_parameters() if not n.startswith("idle")]
        free = [p for n, p in self.network.named_parameters() if n in names]
        a, b = (
            {
                n: g.numpy()
                for n, g in zip(
                    names,
                    torch.autograd.grad(loss_of(self.network, images[h], labels[h]), free),
                    strict=True,
                )
            }
            for h in (slice(0, 4), slice(4, 8))
        )
        g = {n: (a[n] + b[n]) / 2 for n in names}
        self.count += 1
        if self.adam:
            for n in names:
                self.m[n] = BETAS[0] * self.m[n] + (1 - BETAS[0]) * g[n]
                self.v[n] = BETAS[1] * self.v[n] + (1 - BETAS[1]) * g[n] ** 2
        if step >= 6 and step % 3 == 0:
            self.estimate(a, b)
        for n, parameter in zip(names, free, strict=True):
            direction = g[n]
            if self.adam:
                m = self.m[n] / (1 - BETAS[0] ** self.count)
                v = self.v[n] / (1 - BETAS[1] ** self.count)
                direction = m / (np.sqrt(v) + EPS)
            with torch.no_grad():
                parameter -= LR * self.mu[n.split(".")[0]] * torch.from_numpy(direction)

    def estimate(self, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
        phi = {}
        for module in ("backbone", "neck", "head"):
            flat = [
                np.concatenate(
                    [
                        (half[n] / (np.sqrt(self.v[n]) + EPS if self.adam else 1)).ravel()
                        for n in half
                        if n.startswith(module)
                    ]
                )
                for half in (a, b)
            ]
            phi[module] = 1 - flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
        for module, value in phi.items():
            s = np.sqrt(np.clip((phi["backbone"] + 1e-6) / (value + 1e-6), 0.5, 10))
            self.mu[module] = 0.8 * self.mu[module] + 0.2 * s


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("how", ["accumulate", "halve"])
def test_thirty_steps_equal_the_formulas_in_numpy(adam: bool, how: str) -> None:
    network, other = tiny(), tiny()
    hand = ByHand(other, adam)
    agvm, optimizer = make(network, adam)
    for step in range(30):
        (found,) = run(agvm, network, optimizer, range(step, step + 1), how)
        hand.step(step)
        assert found == pytest.approx(hand.mu, rel=1e-9)
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert found["backbone"] == found["idle"] == 1
    assert abs(found["head"] - 1) > 0.05
    assert set(agvm.variances) == {"backbone", "neck", "head"}


class Wired(pl.LightningModule):
    """The calls that a LightningModule makes."""

    def __init__(self, adam: bool) -> None:
        super().__init__()
        self.network = tiny()
        self.agvm, self.optimizer = make(self.network, adam)
        self.seen: list[set[float]] = []  # rates between the steps

    def training_step(self, _: Tensor, batch_idx: int) -> Tensor:
        accumulate = self.trainer.accumulate_grad_batches
        self.micro = batch_idx % accumulate
        images, labels = batch(self.global_step)
        self.seen.append({group["lr"] for group in self.optimizer.param_groups})
        if accumulate > 1:
            part = slice(self.micro * 8 // accumulate, (self.micro + 1) * 8 // accumulate)
            return loss_of(self.network, images[part], labels[part])
        if self.agvm.estimates(self.global_step, self.global_step):
            half = loss_of(self.network, images[:4], labels[:4]) / 2
            first = self.agvm.first_half(half, self.parameters())
            return first + loss_of(self.network, images[4:], labels[4:]) / 2
        return loss_of(self.network, images, labels)

    def on_after_backward(self) -> None:
        half = self.trainer.accumulate_grad_batches // 2
        if self.agvm.estimates(self.global_step, self.global_step) and self.micro + 1 == half:
            self.agvm.snapshot()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.agvm.scale_rates(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.agvm.restore_rates()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_under_lightning_it_is_the_same(adam: bool, accumulate: int, tmp_path: Path) -> None:
    module, other = Wired(adam), tiny()
    trainer = pl.Trainer(
        max_steps=30,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(range(30 * accumulate)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    hand = ByHand(other, adam)
    for step in range(30):
        hand.step(step)
    assert module.agvm.factors == pytest.approx(hand.mu, rel=1e-9)
    assert hand.mu["head"] != 1
    for mine, theirs in zip(module.network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert module.seen == [{LR}] * 30 * accumulate
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    resumed = Wired(adam)
    resumed.load_state_dict(saved["state_dict"])
    assert resumed.agvm.factors == module.agvm.factors


def test_the_ratio_is_clamped_and_the_first_estimate_comes_after_the_warm_up() -> None:
    agvm, _ = make(tiny(), adam=False)
    agvm.variances = {"backbone": 1.0, "neck": 1e-9, "head": 1.9}
    agvm._smooth(1.0)
    expected = {"backbone": 1.0, "neck": 0.8 + 0.2 * 10**0.5, "head": 0.8 + 0.2 / 1.9**0.5}
    assert agvm.factors == pytest.approx({**expected, "idle": 1.0}, rel=1e-5)
    agvm.variances = {"backbone": 1e-3, "head": 1.0}
    agvm._smooth(1e-3)
    assert agvm.factors["head"] == pytest.approx(0.8 * expected["head"] + 0.2 * 0.5**0.5)
    assert [step for step in range(16) if agvm.estimates(step, step)] == [6, 9, 12, 15]


def test_rates_are_restored_also_where_a_step_was_skipped() -> None:
    network = tiny()
    agvm, optimizer = make(network, adam=True)
    agvm.factors["head"] = 1.5
    for _ in range(2):  # the second time without a restore between: a scaler skipped the step
        agvm.scale_rates(optimizer)
        rates = {group["agvm"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"backbone": LR, "neck": LR, "head": 1.5 * LR, "idle": LR}
    agvm.restore_rates()
    assert {group["lr"] for group in optimizer.param_groups} == {LR}


def test_a_locked_module_keeps_its_factor_and_a_locked_backbone_everyones() -> None:
    network = tiny()
    agvm, optimizer = make(network, adam=True)
    network["neck"].requires_grad_(False)
    factors = run(agvm, network, optimizer, range(6, 10), "accumulate")[-1]
    assert factors["neck"] == 1 != factors["head"]
    network["backbone"].requires_grad_(False)
    network["neck"].requires_grad_(True)
    for how in ("accumulate", "halve"):
        assert run(agvm, network, optimizer, range(12, 16), how)[-1] == factors
    assert "backbone" not in agvm.variances


def test_a_resumed_run_goes_on_exactly() -> None:
    networks = [tiny() for _ in range(3)]
    whole, first, second = (make(network, adam=True) for network in networks)
    expected = run(whole[0], networks[0], whole[1], range(24), "accumulate")
    run(first[0], networks[1], first[1], range(13), "accumulate")
    networks[2].load_state_dict(networks[1].state_dict())
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    assert run(second[0], networks[2], second[1], range(13, 24), "accumulate") == expected[13:]
    for mine, theirs in zip(networks[0].parameters(), networks[2].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoint_of_other_modules_is_an_error() -> None:
    agvm, _ = make(tiny(), adam=True)
    with pytest.raises(ConfigError, match=r"model\.agvm: the checkpoint scales \['backbone'\]"):
        agvm.load_state_dict({"_extra_state": {"backbone": 1.0}})


def test_ranks_and_a_scaler_are_taken_out_of_the_first_half() -> None:
    """Two ranks of four images each are one batch of eight in another order."""
    network, ranks = tiny(), [tiny(), tiny()]
    images, labels = batch(0)
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # first half: the first micro-batch of either rank
    agvm, optimizer = make(network, adam=False)
    for micro, part in enumerate((order[:4], order[4:])):
        (loss_of(network, images[part], labels[part]) / 2).backward()
        if micro == 0:
            agvm.snapshot()
    agvm.scale_rates(optimizer)

    firsts, scale = [], 1024.0
    for micro in range(2):
        for rank, each in enumerate(ranks):
            part = slice(4 * rank + 2 * micro, 4 * rank + 2 * micro + 2)
            (scale * loss_of(each, images[part], labels[part]) / 2).backward()
            if micro == 0:
                parameters = [p for m in each.children() for p in m.parameters()]
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
                firsts.append(torch.cat([g.flatten() for g in grads]) / scale)
        if micro == 0:
            other, rank_optimizer = make(ranks[0], adam=False)
            other.snapshot(reduce=lambda mine: (mine + firsts[1]) / 2, scale=scale)
            torch.testing.assert_close(other._first, (firsts[0] + firsts[1]) / 2)
    for mine, theirs in zip(ranks[0].parameters(), ranks[1].parameters(), strict=True):
        if mine.grad is not None:  # what DDP and the scaler do before the optimiser's step
            mine.grad = (mine.grad + theirs.grad) / 2 / scale
    other.scale_rates(rank_optimizer)
    assert other.variances == pytest.approx(agvm.variances, rel=1e-9)


def test_the_first_half_keeps_the_gradient_of_what_lies_in_no_module() -> None:
    network, plain = tiny(), tiny()
    images, labels = batch(0)
    agvm = AGVM(CONFIG, {"backbone": list(network["backbone"].parameters())})
    half = loss_of(network, images[:4], labels[:4]) / 2
    first = agvm.first_half(half, network.parameters())
    assert torch.equal(first, half)
    (first + loss_of(network, images[4:], labels[4:]) / 2).backward()
    loss_of(plain, images, labels).backward()
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("kind", HEADS)
def test_halves_of_a_batch_are_its_images_in_two(kind: str) -> None:
    whole = make_batch(kind, 4)
    whole.others = [make_batch("multilabel", 2)]
    first, second = halves(whole)
    assert first.keys + second.keys == whole.keys
    assert torch.equal(torch.cat([first.images, second.images]), whole.images)
    assert torch.equal(torch.cat([first.teacher_images, second.teacher_images]), whole.images)
    assert [len(part.keys) for part in first.parts] == [2, 1]
    for f in fields(whole.target):
        value = getattr(whole.target, f.name)
        parts = [getattr(half.target, f.name) for half in (first, second)]
        if isinstance(value, Tensor):
            assert torch.equal(torch.cat(parts), value)
        elif isinstance(value, list):
            assert all(a is b for a, b in zip(parts[0] + parts[1], value, strict=True))
        else:
            assert parts == [value, value]


def test_a_batch_of_an_odd_number_of_images_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"toy/detection has 3 images.*data\.batch_size"):
        halves(make_batch("detection", 3))


def test_modules_are_parts_shared_parts_and_heads_or_those_named() -> None:
    tasks = [make_task("multilabel"), make_task("detection")]
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, {"width": 8}, tasks)
    found = module_parameters(network)
    names = ["backbone", "projector", "heads.toy/multilabel", "heads.toy/detection"]
    assert list(found) == names
    every = [id(p) for parameters in found.values() for p in parameters]
    assert sorted(every) == sorted(id(p) for p in network.parameters())
    neck = "heads.toy/detection.neck"
    named = module_parameters(network, ["heads.toy/detection", neck])
    assert list(named) == ["backbone", "heads.toy/detection", neck]
    assert [id(p) for p in named[neck]] == [
        id(p) for p in network.head("toy/detection").neck.parameters()
    ]
    agvm = AGVM(AGVMConfig(), named)
    optimizer = torch.optim.AdamW(agvm.split(parameter_groups(network, 1.0, {}, 0.1)))
    check_covered(network, optimizer)
    of = {id(p): group["agvm"] for group in optimizer.param_groups for p in group["params"]}
    assert {of[id(p)] for p in network.projector.parameters()} == {""}
    for name, parameters in named.items():
        assert {of[id(p)] for p in parameters} == {name}
    agvm.scale_rates(optimizer)  # also of what lies in no module


def test_a_module_that_is_not_there_is_an_error() -> None:
    network = Network(
        {"name": "test_efficientnet", "image_size": SIZE}, None, [make_task("multilabel")]
    )
    with pytest.raises(ConfigError, match=r"model\.agvm: modules: 'neck' names no module"):
        module_parameters(network, ["neck"])


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"momentum": 1.0}, {"low": 0.0}, {"high": 0.9}])
def test_a_wrong_setting_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"model\.agvm: .*expected interval >= 1"):
        AGVMConfig(**wrong)
