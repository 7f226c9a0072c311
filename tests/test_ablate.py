"""Validation after phases, forgetting and ablations through the real command."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import ark, ark_in_a_child, losses, write_recipe
from pytorch_lightning.callbacks import Callback

KEEP = ["tiny_findings/findings", "tiny_organs/organs"]
# 1, 3, 6, 8 | 9, 11, 14, 16: four phases of unlike length in each of two cycles
CYCLE = {
    "cycles": 2,
    "phases": [
        {"task": KEEP[0], "lock": ["backbone"], "steps": 1},
        {"task": KEEP[0], "steps": 2},
        {"task": KEEP[1], "lock": ["backbone"], "steps": 3},
        {"task": KEEP[1], "steps": 2},
    ],
}
CONTEXT = multiprocessing.get_context("forkserver")


class KillInValidation(Callback):
    """SIGKILL in the validation after `step` steps; its checkpoint is written by then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn == "fit" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Count(Callback):
    """Appends the step of every validation of the training to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn == "fit":
            with self.path.open("a") as file:
                file.write(f"{trainer.global_step} ")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    run = {"root": str(folder / "runs"), "wandb": "off", "pictures": 0, "validate": "phase"}
    data = {"image_size": 64, "batch_size": 4, "workers": 0, "only": KEEP}
    return write_recipe(folder, cycle=CYCLE, run=run, data=data)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    return fit(recipe, "whole")


def fit(recipe: Path, name: str, *more: object) -> Path:
    ark("fit", "--config", recipe, f"--run.name={name}", *more)
    return recipe.parent / "runs" / name


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "forgetting.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def validated(run: Path) -> set[int]:
    """The steps that were done when validation scores were logged, over all sessions."""
    found = set()
    for path in run.glob("logs/version_*/metrics.csv"):
        for row in csv.DictReader(path.open()):
            if row.get("val/score"):
                found.add(int(row["step"]) + 1)
    return found


def test_every_phase_is_validated_and_recorded(whole: Path) -> None:
    table = rows(whole)
    assert [int(row["step"]) for row in table[::2]] == [0, 1, 3, 6, 8, 9, 11, 14, 16]
    assert [row["phases"] for row in table[::2]] == list("012345678")
    assert [row["cycle"] for row in table[::2]] == list("011112222")
    assert [row["who"] for row in table[:2]] == ["student", "teacher"]
    assert table[2]["task"] == KEEP[0]
    assert table[2]["lock"] == "lock backbone"
    # a locked backbone and another task's head: nothing of this task moved
    assert table[2][KEEP[1]] == table[0][KEEP[1]]
    metrics = list(csv.DictReader((whole / "logs" / "version_0" / "metrics.csv").open()))
    logged = {int(r["step"]): r for r in metrics if r.get("val/score")}
    for row in table[3::2]:
        value = logged[int(row["step"]) - 1][f"val_teacher/{KEEP[1]}/dice"]
        assert float(row[KEEP[1]]) == pytest.approx(float(value))


def test_the_numbers_are_in_the_report(whole: Path) -> None:
    numbers = json.loads((whole / "forgetting.json").read_text())
    table = {(int(row["step"]), row["who"]): row for row in rows(whole)}

    def score(step: int, task: str) -> float:
        return float(table[step, "student"][task])

    found = numbers["student"]
    first, second = KEEP
    assert found["backward transfer"][first] == pytest.approx(score(16, first) - score(11, first))
    assert found["backward transfer"][second] is None  # it trained until the end
    assert found["lost between visits"][first] == pytest.approx(score(3, first) - score(8, first))
    assert found["forward transfer"][second] == pytest.approx(score(3, second) - score(0, second))
    report = (whole / "report.md").read_text()
    assert "## Forgetting and transfer" in report
    assert "](forgetting.png)" in report
    assert (whole / "forgetting.png").is_file()


@pytest.mark.parametrize("stop", [4, 6], ids=["mid-phase", "phase-end"])
def test_a_resumed_run_continues_the_file_exactly(recipe: Path, whole: Path, stop: int) -> None:
    options = [f"--trainer.max_steps={stop}", f"--run.checkpoint_every={stop}"]
    run = fit(recipe, f"resumed{stop}", *options)
    fit(recipe, f"resumed{stop}", "--ckpt_path=last")
    assert (run / "forgetting.csv").read_text() == (whole / "forgetting.csv").read_text()
    assert (run / "forgetting.json").read_text() == (whole / "forgetting.json").read_text()


def test_accumulated_batches_validate_once_a_phase(recipe: Path, tmp_path: Path) -> None:
    count = [{"class_path": "test_ablate.Count", "init_args": {"path": str(tmp_path / "count")}}]
    options = ["--trainer.accumulate_grad_batches=2", f"--trainer.callbacks={count}"]
    run = fit(recipe, "accumulated", *options)
    counted = [int(step) for step in (tmp_path / "count").read_text().split()]
    assert counted == [1, 3, 6, 8, 9, 11, 14, 16]
    assert [int(row["step"]) for row in rows(run)[::2]] == [0, 1, 3, 6, 8, 9, 11, 14, 16]


def test_every_second_phase_and_the_best_checkpoint_of_it(recipe: Path) -> None:
    options = ["--run.validate_every=2", "--run.baseline=false"]
    run = fit(recipe, "second", *options)
    table = rows(run)
    assert [int(row["step"]) for row in table[::2]] == [3, 8, 11, 16]
    (best,) = (run / "checkpoints").glob("best-*.ckpt")
    step = torch.load(best, weights_only=True)["global_step"]
    means = {int(r["step"]): sum(float(r[task]) for task in KEEP) for r in table[::2]}
    assert means[step] == pytest.approx(max(means.values()))
    assert best.name == f"best-{step}.ckpt"
    # a checkpoint of a validation has it behind it
    fit(recipe, "second", *options, f"--ckpt_path={best}")
    again = list(csv.DictReader((run / "logs" / "version_1" / "metrics.csv").open()))
    assert str(step - 1) not in [row["step"] for row in again if row.get("val/score")]
    assert rows(run) == table


def test_two_ways_to_say_when_are_an_error(recipe: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        fit(recipe, "two-ways", "--trainer.val_check_interval=4")
    assert "val_check_interval=4 and run.validate=phase; drop one" in capsys.readouterr().err


def test_by_cycles_nothing_is_recorded(recipe: Path) -> None:
    run = fit(recipe, "cycles", "--run.validate=cycle", "--run.baseline=false")
    assert not (run / "forgetting.csv").exists()
    assert validated(run) == {8, 16, 17}  # 17: for the heads' thresholds, after training


@pytest.mark.slow  # a process of its own
def test_killed_in_a_validation_it_is_done_when_the_run_goes_on(recipe: Path, whole: Path) -> None:
    kill = [{"class_path": "test_ablate.KillInValidation", "init_args": {"step": 6}}]
    options = ["fit", "--config", recipe, "--run.name=killed", "--run.checkpoint_every=6"]
    args = (*options, f"--trainer.callbacks={kill}")
    process = CONTEXT.Process(target=ark_in_a_child, args=args)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    run = recipe.parent / "runs" / "killed"
    assert int(rows(run)[-1]["step"]) == 3
    fit(recipe, "killed", "--run.checkpoint_every=6", "--ckpt_path=last")
    assert (run / "forgetting.csv").read_text() == (whole / "forgetting.csv").read_text()


@pytest.mark.slow  # two processes
@pytest.mark.parametrize(
    ("cycle", "steps"),
    [
        ({"mix": {"steps": 7, "weights": dict(zip(KEEP, (6.0, 1.0), strict=True))}}, (12, 2)),
        (
            {
                "phases": [
                    {"tasks": ["all"], "steps": 2},
                    {"task": KEEP[0], "lock": ["backbone"], "steps": 1, "last_cycle": 1},
                    {"task": KEEP[1], "lock": [f"heads.{KEEP[0]}"], "steps": 1, "first_cycle": 2},
                ]
            },
            (5, 5),
        ),
    ],
    ids=["mix", "concurrent"],
)
def test_alone_a_task_has_the_steps_of_the_joint_run(
    cycle: dict, steps: tuple[int, int], recipe: Path, tmp_path: Path
) -> None:
    path = recipe.parent / "other.yaml"  # beside the datasets that it lists
    content = yaml.safe_load(recipe.read_text()) | {"cycle": {"cycles": 2, **cycle}}
    content["run"] |= {"root": str(tmp_path), "bootstraps": 0, "validate": "cycle"}
    path.write_text(yaml.safe_dump(content))
    ark("fit", "--config", path, "--run.name=joint", "--run.baseline=false", "--run.alone=true")
    found = [sorted(losses(tmp_path / "joint" / "alone" / key)) for key in KEEP]
    assert found == [list(range(count)) for count in steps]


# -- ark ablate -----------------------------------------------------------------------------------


def write_grid(recipe: Path, name: str, **variants: Any) -> Path:
    path = recipe.parent / f"{name}.yaml"
    grid = {
        "name": name,
        "recipe": recipe.name,
        "root": str(recipe.parent / "runs"),
        "seeds": [0, 1],
        "fixed": {"run.baseline": False, "run.bootstraps": 0, "cycle.cycles": 1},
        "variants": variants,
    }
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def test_a_variant_of_other_length_is_an_error_before_anything_runs(recipe: Path, capsys) -> None:
    grid = write_grid(recipe, "unequal", one={}, two={"cycle.cycles": 2})
    with pytest.raises(SystemExit) as stop:
        ark("ablate", grid)
    assert stop.value.code == 2
    assert "two takes 16 optimiser steps, one takes 8" in capsys.readouterr().err
    assert not (recipe.parent / "runs" / "unequal").exists()


def test_a_wrong_option_names_its_variant(recipe: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        ark("ablate", write_grid(recipe, "wrong", one={}, two={"cycle.cyles": 2}))
    error = capsys.readouterr().err
    assert "cyles" in error
    assert "ark fit --help" in error
    assert "__main__" not in error
    assert "variant two: `ark fit` does not take its options" in error


def test_a_comparison_to_no_variant_is_an_error(recipe: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        ark("ablate", write_grid(recipe, "against", one={}), "--against=other")
    assert "no variant 'other'; the grid has ['one']" in capsys.readouterr().err


def test_a_dry_run_prints_the_commands(recipe: Path, capsys) -> None:
    first = [{"task": KEEP[0], "steps": 4}, {"task": KEEP[1], "steps": 4}]
    grid = write_grid(recipe, "dry", one={}, two={"cycle.phases": first})
    ark("ablate", grid, "--dry_run", "--only=[two]", "--seeds=[5]")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if " fit " in x]
    assert "--seed_everything=5" in line
    assert "--run.name=dry/two/seed5" in line
    assert not (recipe.parent / "runs" / "dry").exists()


def test_a_grid_is_an_array_of_jobs(recipe: Path, tmp_path: Path, capsys) -> None:
    grid = write_grid(recipe, "array", one={}, two={"model.clip": {"segmentation": 1.0}})
    submit = ("slurm", "submit", "--time=1-00", f"--ablate={grid}", "--dry-run")
    ark(*submit, "--cpu-ranks=2")
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-3\n" in script
    # the part of the script that sets `options`, with what task 2 of the array gets
    shell = tmp_path / "options.sh"
    setting = script[script.index('case "$SLURM_ARRAY_TASK_ID"') : script.index("esac") + 4]
    shell.write_text(f"{setting}\nprintf '%s\\n' \"${{options[@]}}\"\n")
    env = {"SLURM_ARRAY_TASK_ID": "2", "PATH": os.environ["PATH"]}
    options = subprocess.run(["bash", shell], env=env, capture_output=True, text=True, check=True)
    lines = options.stdout.splitlines()
    assert "--run.name=array/two/seed0" in lines
    assert '--model.clip={"segmentation": 1.0}' in lines
    assert {"--seed_everything=0", "--trainer.devices=2"} <= set(lines)
    with pytest.raises(SystemExit):
        ark(*submit, "--cpu-ranks=3")
    error = capsys.readouterr().err
    assert "variant one: data.batch_size=4: a step's samples do not split over 3 ranks" in error
    assert not (recipe.parent / "runs" / "array").exists()  # a dry run writes nothing


@pytest.mark.slow  # six processes
def test_an_ablation_that_was_killed_goes_on(recipe: Path) -> None:
    grid = write_grid(recipe, "killed_grid", joint={}, single={"run.alone": True})
    folder = recipe.parent / "runs" / "killed_grid"
    command = [sys.executable, "-m", "ark", "ablate", str(grid)]
    process = subprocess.Popen(command, start_new_session=True)
    first = folder / "joint" / "seed0" / "results.json"
    until = time.monotonic() + 240
    while not (folder / "joint" / "seed1" / "log.txt").exists():
        assert time.monotonic() < until, "the second run never began"
        assert process.poll() is None, "it ended early"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stamp = first.stat().st_mtime_ns
    assert subprocess.run(command, check=False).returncode == 0
    assert first.stat().st_mtime_ns == stamp, "a finished run ran again"
    with (folder / "ablation.csv").open(newline="") as file:
        table = {(r["who"], r["task"], r["variant"]): r for r in csv.DictReader(file)
                 if r["metric"] in ("auroc", "main metric")}  # fmt: skip
    for variant in ("joint", "single"):
        scores = []
        for seed in (0, 1):
            where = folder / variant / f"seed{seed}"
            if variant == "single":
                results = json.loads((where / "alone" / "results.json").read_text())
                scores.append(results["alone student"][KEEP[0]]["auroc"])
            else:
                results = json.loads((where / "results.json").read_text())
                scores.append(results["student"][KEEP[0]]["auroc"])
        row = table["student", KEEP[0], variant]
        assert row["n"] == "2"
        assert float(row["mean"]) == pytest.approx(sum(scores) / 2)
    assert scores[0] != scores[1], "seeds make no difference"
    text = (folder / "ablation.md").read_text()
    assert "## Teacher, less joint" in text
    assert "forgetting" in text
    ark("ablate", grid, "--against=single")  # nothing is run again
    assert "## Teacher, less single" in (folder / "ablation.md").read_text()
    # the same plan for each task alone as in the joint run
    alone = folder / "single" / "seed0" / "alone" / KEEP[0] / "config.yaml"
    assert yaml.safe_load(alone.read_text())["seed_everything"] == 0
