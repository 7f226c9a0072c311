"""Plans beyond a simple cycle through the real command: mixed, concurrent, curricula, resumed."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import TASKS, ark, losses, write_recipe
from safetensors.torch import load_file

OPTIONS = ["--run.baseline=false", "--run.pictures=0", "--run.bootstraps=0"]
FINDINGS, BOXES, ORGANS, DIAGNOSIS = TASKS
PLANS = {
    "concurrent": {
        "cycles": 1,
        "phases": [{"tasks": ["all"], "steps": 3}, {"tasks": [FINDINGS, ORGANS], "steps": 2}],
    },
    "mixed": {"cycles": 2, "mix": {"steps": 6, "every": 1, "temperature": 2.0}},
    "curriculum": {
        "cycles": 3,
        "each": [
            {"train": ["head"], "steps": 1, "last_cycle": 1},
            {"lock": ["backbone"], "steps": 1, "first_cycle": 2, "last_cycle": 2},
            {"steps": 1, "first_cycle": 3},
        ],
    },
}
STEPS = {"concurrent": 5, "mixed": 12, "curriculum": 12}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{who}.{name}": value
        for who in ("student", "teacher")
        for name, value in load_file(run / "model" / f"{who}.safetensors").items()
    }


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_runs_resumes_and_accounts_for_every_sample(plan: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, cycle=PLANS[plan])
    fit = ["fit", "--config", recipe, *OPTIONS]
    ark(*fit, "--run.name=whole")
    ark(*fit, "--run.name=parts", "--trainer.max_steps=4", "--run.checkpoint_every=4")
    ark(*fit, "--run.name=parts", "--ckpt_path=last")
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    assert sorted(losses(whole)) == list(range(STEPS[plan]))
    assert losses(parts) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
    rows = list(csv.DictReader((whole / "ledger.csv").open()))
    last = [row for row in rows if row["step"] == str(STEPS[plan])]
    assert {row["task"] for row in last} == set(TASKS)
    assert all(row["planned"] == row["seen"] for row in last)


def test_a_concurrent_step_trains_every_task_on_its_own_batch(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, cycle=PLANS["concurrent"])
    ark("fit", "--config", recipe, *OPTIONS, "--run.name=run")
    table = pd.read_csv(tmp_path / "runs/run/logs/version_0/metrics.csv")
    steps = {
        task: table.dropna(subset=[f"train/{task}/loss"]).step.astype(int).tolist()
        for task in TASKS
    }
    assert steps == {
        FINDINGS: [0, 1, 2, 3, 4],
        BOXES: [0, 1, 2],
        ORGANS: [0, 1, 2, 3, 4],
        DIAGNOSIS: [0, 1, 2],
    }


def test_a_concurrent_step_is_the_sum_of_the_tasks_steps(tmp_path: Path) -> None:
    """Plain SGD moves every shared weight by the sum of what a step of each task would."""

    def after(name: str, rate: float, *tasks: str) -> dict[str, torch.Tensor]:
        recipe = write_recipe(
            tmp_path,
            cycle={"cycles": 1, "phases": [{"tasks": list(tasks), "steps": 1}]},
            model={
                "backbone": {"name": "test_vit2"},
                "projector": {"width": 8},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": rate}},
                "lr_schedule": {"class_path": "ark.schedules.Constant", "init_args": {"value": 1}},
                "consistency": {"class_path": "ark.schedules.Constant", "init_args": {"value": 0}},
            },
            data={"image_size": 64, "batch_size": 4, "workers": 0, "only": list(tasks)},
        )
        ark("fit", "--config", recipe, *OPTIONS, f"--run.name={name}")
        return load_file(tmp_path / "runs" / name / "model" / "student.safetensors")

    start = after("start", 0.0, FINDINGS)
    both = after("both", 0.1, FINDINGS, DIAGNOSIS)
    one, other = after("one", 0.1, FINDINGS), after("other", 0.1, DIAGNOSIS)
    for name in ("projector.weight", "backbone.model.patch_embed.proj.weight"):
        together = both[name] - start[name]
        assert together.abs().max() > 1e-5
        apart = one[name] + other[name] - 2 * start[name]
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-6)


BALANCES = {
    "gradnorm": {"class_path": "ark.balance.GradNorm", "init_args": {"layer": "backbone.model"}},
    "uncertainty": {"class_path": "ark.balance.Uncertainty"},
    "dwa": {"class_path": "ark.balance.DynamicWeightAverage"},
}


@pytest.mark.parametrize(
    ("balance", "accumulate"), [("gradnorm", 2), ("uncertainty", 1), ("dwa", 1)]
)
def test_what_is_learned_of_gradients_is_resumed_too(
    balance: str, accumulate: int, tmp_path: Path
) -> None:
    """Balance, surgery, AGVM, pseudo-labels and telemetry together, alone and concurrent."""
    plan = {
        "cycles": 3,
        "phases": [{"tasks": [FINDINGS, DIAGNOSIS], "steps": 2}, {"task": FINDINGS, "steps": 1},
                   {"task": DIAGNOSIS, "steps": 1}],
    }  # fmt: skip
    model = {
        "backbone": {"name": "test_efficientnet"},
        "balance": BALANCES[balance],
        "surgery": {"class_path": "ark.surgery.CAGrad"},
        "agvm": {"interval": 1, "warmup": 1},
        "pseudo_labels": {"multilabel": {"low": 0.4, "high": 0.6}},
    }
    telemetry = {"class_path": "ark.telemetry.GradientTelemetry", "init_args": {"every": 1}}
    recipe = write_recipe(
        tmp_path, cycle=plan, model=model,
        data={"image_size": 64, "batch_size": 4, "workers": 0, "only": [FINDINGS, DIAGNOSIS]},
        trainer={"log_every_n_steps": 1, "accelerator": "cpu", "callbacks": [telemetry],
                 "accumulate_grad_batches": accumulate},
    )  # fmt: skip
    fit = ["fit", "--config", recipe, *OPTIONS]
    ark(*fit, "--run.name=whole")
    ark(*fit, "--run.name=parts", "--trainer.max_steps=5", "--run.checkpoint_every=5")
    ark(*fit, "--run.name=parts", "--ckpt_path=last")
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    assert losses(parts) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
    table = pd.concat([pd.read_csv(path) for path in parts.glob("logs/version_*/metrics.csv")])
    logged = pd.read_csv(whole / "logs/version_0/metrics.csv")
    for column in (f"gradient/{FINDINGS}/norm", f"gradient/{FINDINGS}/cosine",
                   "agvm/backbone/variance", f"agvm/heads.{FINDINGS}/factor"):  # fmt: skip
        mine, theirs = (
            t[["step", column]].dropna().sort_values("step").to_numpy() for t in (table, logged)
        )
        assert len(theirs) >= 5
        assert mine.tolist() == theirs.tolist(), column
