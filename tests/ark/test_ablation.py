"""Grids, intervals and tables; `tests/test_ablate.py` runs real ones."""

from __future__ import annotations

import csv
import fcntl
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from ark import ablation, report
from ark.ablation import Plan, Run, check_equal_steps
from ark.comparison import describe, interval, rows
from ark.grid import Grid, arguments
from ark.types import ConfigError

PLAN = Plan(12, {"x/a": "auroc", "x/b": "dice"}, alone=False, recipe="r")


def write_grid(folder: Path, **changes: object) -> Path:
    grid = {"name": "g", "recipe": "r.yaml", "variants": {"one": {}, "two": {"a.b": 1}}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid | changes, sort_keys=False))
    return path


def make_run(folder: Path, variant: str, seed: int, scores: tuple[float | None, ...]) -> Run:
    run = Run(variant, seed, folder / f"{variant}{seed}", (), PLAN)
    if scores:
        tasks = zip(PLAN.main.items(), scores, strict=True)
        column = {task: {metric: score} for (task, metric), score in tasks}
        run.folder.mkdir(parents=True)
        run.results.write_text(json.dumps({"student": column, "teacher": column}))
        (run.folder / ablation.MADE_WITH).write_text(run.digest)
    return run


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert interval(list(values)) == pytest.approx((values.mean(), low, high))


def test_without_a_second_value_there_is_no_interval() -> None:
    assert interval([0.5]) == pytest.approx((0.5, math.nan, math.nan), nan_ok=True)
    assert all(map(math.isnan, interval([])))


def test_differences_are_of_the_same_seed(tmp_path: Path) -> None:
    one = {0: 0.5, 1: 0.7, 2: 0.6}
    two = {2: 0.66, 1: 0.77, 0: 0.55}
    runs = [make_run(tmp_path, "one", seed, (v, v)) for seed, v in one.items()]
    runs += [make_run(tmp_path, "two", seed, (v, v)) for seed, v in two.items()]
    made = rows(ablation.collect(runs), ["one", "two"])
    (row,) = [r for r in made if (r["who"], r["task"], r["variant"]) == ("teacher", "x/a", "two")]
    test = stats.ttest_rel([two[s] for s in one], list(one.values())).confidence_interval(0.95)
    found = row["difference"], row["difference_low"], row["difference_high"]
    assert found == pytest.approx((0.06, test.low, test.high))
    assert (row["mean"], row["n"]) == pytest.approx((0.66, 3))


def test_what_a_run_lacks_is_left_out_and_not_taken_for_0(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "one", 0, (0.4, 0.6)), make_run(tmp_path, "one", 1, (0.8, None))]
    runs += [make_run(tmp_path, "two", 0, ()), make_run(tmp_path, "two", 1, (0.5, 0.7))]
    found = ablation.collect(runs)
    assert found["student", "x/b", "dice"] == {"one": {0: 0.6}, "two": {1: 0.7}}
    assert found["student", "mean over tasks", "main metric"] == {
        "one": {0: pytest.approx(0.5)},
        "two": {1: pytest.approx(0.6)},
    }
    made = rows(found, ["one", "two"])
    text = describe(made, "g", "r", [0, 1], ["one", "two"])
    student, less = text.split("## Student")[1:]
    (line,) = [line for line in student.splitlines() if "x/a" in line]
    assert [cell.strip() for cell in line.split("|")[3:5]] == [
        "0.600 (-1.941 to 3.141)",
        "0.500 (n=1)",
    ]
    (line,) = [line for line in less.splitlines() if "x/a" in line][:1]
    assert line.split("|")[3].strip() == "-0.300 (n=1)"  # seed 1 only
    (line,) = [line for line in less.splitlines() if "x/b" in line][:1]
    assert line.split("|")[3].strip() == ""  # no seed in common


def test_results_of_another_recipe_are_not_in_the_table(tmp_path: Path, caplog) -> None:
    kept = make_run(tmp_path, "one", 0, (0.4, 0.6))
    old = make_run(tmp_path, "two", 0, (0.8, 0.8))
    (old.folder / ablation.MADE_WITH).write_text("of another recipe")
    unknown = make_run(tmp_path, "two", 1, (0.9, 0.9))
    (unknown.folder / ablation.MADE_WITH).unlink()
    absent = make_run(tmp_path, "one", 1, ())
    found = ablation.collect([kept, old, unknown, absent])
    assert found["teacher", "x/a", "auroc"] == {"one": {0: 0.4}}
    assert [f"the table lacks two seed {n}" in caplog.text for n in (0, 1)] == [True, True]
    assert "one seed" not in caplog.text


def table_of(grid: Path, monkeypatch, *options: str) -> str:
    """The table after `ark ablate GRID OPTIONS`, where every run scores its seed / 10."""

    def planned(grid: Grid, path: Path, seeds: list[int]) -> list[Run]:
        root = Path(grid.root)
        return [Run(v, s, root / f"{v}{s}", (), PLAN) for v in grid.combined() for s in seeds]

    def execute(runs: list[Run], jobs: int) -> list[Run]:
        for run in runs:
            if not run.folder.exists():
                make_run(Path(run.folder).parent, run.variant, run.seed, (run.seed / 10,) * 2)
        return []

    monkeypatch.setattr(ablation, "plan", planned)
    monkeypatch.setattr(ablation, "execute", execute)
    ablation.ablate([str(grid), *options])
    return (grid.parent / "g" / ablation.TABLE).read_text()


def test_the_table_names_the_seeds_that_ran_and_keeps_the_finished(tmp_path, monkeypatch) -> None:
    grid = write_grid(tmp_path, root=str(tmp_path))
    (tmp_path / "g").mkdir()
    assert "seeds [7, 8]:" in table_of(grid, monkeypatch, "--seeds=[7,8]")
    assert "seeds [0, 1, 2]:" in table_of(grid, monkeypatch)
    again = table_of(grid, monkeypatch, "--seeds=[0]")
    assert "seeds [0, 1, 2]:" in again
    assert "0.100 (-0.148 to 0.348)" in again
    assert "seeds [0, 1, 2, 7]:" in table_of(grid, monkeypatch, "--seeds=[7]", "--only=[two]")


def test_a_number_of_fewer_seeds_than_the_table_says_so(tmp_path, monkeypatch) -> None:
    grid = write_grid(tmp_path, root=str(tmp_path))
    (tmp_path / "g").mkdir()
    table_of(grid, monkeypatch)
    (tmp_path / "one1" / report.RESULTS).unlink()
    text = table_of(grid, monkeypatch, "--only=[two]")
    student, less = text.split("## Student")[1:]
    (line,) = [line for line in student.splitlines() if "x/a" in line]
    assert [cell.strip() for cell in line.split("|")[3:5]] == [
        "0.100 (-1.171 to 1.371, n=2)",
        "0.100 (-0.148 to 0.348)",
    ]
    (line,) = [line for line in less.splitlines() if "x/a" in line][:1]
    assert line.split("|")[3].strip() == "+0.000 (+0.000 to +0.000, n=2)"
    with (tmp_path / "g" / ablation.ROWS).open(newline="") as file:
        table = {row["variant"]: row for row in csv.DictReader(file)}
    assert (table["two"]["n"], table["two"]["difference_n"]) == ("3", "2")


@pytest.mark.parametrize("seeds", ["[0,0]", "[]"])
def test_seeds_twice_or_none_are_an_error(seeds: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds=.*at least one, each once"):
        ablation.ablate([str(write_grid(tmp_path)), f"--seeds={seeds}"])


def test_axes_are_multiplied_and_lists_replace(tmp_path: Path) -> None:
    levels = {"yes_": {"k": [1], "both": 1}, "no_": {"k": [2]}}
    axes = {"lock": levels, "teacher": {"up": {"both": 2}, "down": {}}}
    grid = Grid.load(write_grid(tmp_path, axes=axes))
    assert list(grid.combined()) == [
        "one", "two", "lock-yes__teacher-up", "lock-yes__teacher-down",
        "lock-no__teacher-up", "lock-no__teacher-down",
    ]  # fmt: skip
    assert arguments(grid.combined()["lock-yes__teacher-up"]) == ["--k=[]", "--k=[1]", "--both=2"]
    off = Grid.load(write_grid(tmp_path, fixed={"run.wandb": "off"}))
    assert arguments(off.fixed) == ["--run.wandb=off"]
    assert arguments({"a": True, "b": None, "c": "off", "d": {"e": [1]}}) == [
        "--a=true", "--b=null", "--c=off", '--d={"e": [1]}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varaints": {}}, "varaints"),
        ({"name": "a/b"}, "name 'a/b'; use letters"),
        ({"variants": {"a b": {}}}, "name 'a b'; use letters"),
        ({"variants": {}}, "0 variants"),
        ({"seeds": [1, 1]}, r"seeds \[1, 1\]"),
        ({"fixed": {"run.name": "x"}}, "'run.name' is set by `ark ablate` itself"),
        ({"variants": {"a": {"seed_everything": 1}}}, "'seed_everything' is set by"),
        ({"seeds": "many"}, "seeds: 'many'; expected a list"),
        ({"variants": {"a": None}}, "variants: .*{} for no option"),
        ({"axes": {"lock": {True: {}}}}, "axes: .*'on' and 'off' in quotes"),
        ({"recipe": 3}, "recipe: 3; expected a path"),
        ({"name": ".."}, r"name '\.\.'; use letters.* no '.' at the beginning"),
        ({"variants": {".git": {}}}, r"name '\.git'; use letters"),
        ({"fixed": {"run": {"name": "x"}}}, "'run.name' is set by `ark ablate` itself"),
        ({"variants": {"a": {"run": {"root": "x"}}}}, "'run.root' is set by"),
        (
            {"variants": {"lock-up": {}}, "axes": {"lock": {"up": {"k": 1}}}},
            "two variants are named 'lock-up'",
        ),
        (
            {"axes": {"a": {"1": {}, "1_b-2": {}}, "b": {"2_b-2": {}, "2": {}}}},
            "two variants are named 'a-1_b-2_b-2'",
        ),
    ],
)
def test_a_wrong_grid_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid.load(write_grid(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"name: [g\n", b"name: \xff"])
def test_a_grid_that_is_no_yaml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"grid\.yaml is no YAML"):
        Grid.load(path)


def test_unequal_steps_and_tasks_are_errors_that_say_both() -> None:
    check_equal_steps({"one": PLAN, "two": PLAN})
    other = Plan(15, PLAN.main, alone=False, recipe="r")
    with pytest.raises(ConfigError, match="two takes 15 optimiser steps, one takes 12"):
        check_equal_steps({"one": PLAN, "two": other})
    fewer = Plan(12, {"x/a": "auroc"}, alone=False, recipe="r")
    with pytest.raises(ConfigError, match="expected the same tasks"):
        check_equal_steps({"one": PLAN, "two": fewer})


def test_a_run_goes_on_where_it_left_a_checkpoint(tmp_path: Path) -> None:
    run = Run("one", 3, tmp_path, ("--config", "r.yaml"), PLAN)
    assert run.command()[-2:] == ["--seed_everything=3", "--run.overwrite=true"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert run.command()[-2:] == ["--seed_everything=3", "--ckpt_path=last"]


def test_a_folder_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", 0, (0.5, 0.5))
    (run.folder / ablation.MADE_WITH).unlink()
    with pytest.raises(ConfigError, match="another recipe"):
        run.check_folder()
    (run.folder / ablation.MADE_WITH).write_text(run.digest)
    run.check_folder()
    changed = Run(run.variant, run.seed, run.folder, (), Plan(12, PLAN.main, False, "other"))
    with pytest.raises(ConfigError, match="another recipe"):
        changed.check_folder()


def test_a_run_that_still_goes_on_is_not_started_twice(tmp_path: Path, caplog) -> None:
    run = make_run(tmp_path, "one", 0, (0.5, 0.5))
    with (run.folder / ablation.LOG).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not run.execute()
    assert "still runs in another process" in caplog.text


def test_a_failed_run_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch, caplog) -> None:
    def command(run: Run) -> list[str]:
        fine = f"touch {run.results}" if run.seed else "echo the reason; false"
        return ["sh", "-c", fine]

    monkeypatch.setattr(Run, "command", command)
    runs = [Run("one", seed, tmp_path / str(seed), (), PLAN) for seed in range(3)]
    caplog.set_level("INFO", "ark")
    assert ablation.execute(runs, jobs=2) == [runs[0]]
    assert "one seed 0: failed with exit code 1" in caplog.text
    assert "the reason" in caplog.text
    assert [run.results.is_file() for run in runs] == [False, True, True]
