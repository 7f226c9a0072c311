"""Growing through the real command: a run of two datasets is published, a new run adds a third."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import TASKS, ark, write_recipe

from ark.checkpoint import load_network
from ark.growing.table import FILE
from ark.published.config import read_config

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "recipes"
OLD = ["tiny_findings/findings", "tiny_boxes/boxes"]
SHORT = ["--run.bootstraps=0", "--run.pictures=0", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("growing"))


@pytest.fixture(scope="module")
def old(recipe: Path) -> Path:
    """The folder of a run of two of the datasets."""
    ark("fit", "--config", recipe, "--run.name=old", f"--data.only={OLD}", *SHORT)
    return recipe.parent / "runs" / "old"


@pytest.fixture(scope="module")
def published(old: Path) -> Path:
    ark("export", old, old.parent / "published")
    return old.parent / "published"


@pytest.fixture(scope="module")
def grown(recipe: Path, published: Path) -> Path:
    """The folder of a run of all datasets that starts there, never interrupted."""
    fit(recipe, "grown", f"--init_from={published}")
    return recipe.parent / "runs" / "grown"


def fit(recipe: Path, name: str, *more: object) -> None:
    ark("fit", "--config", recipe, f"--run.name={name}", *SHORT, *more)


def state(path: Path, which: str = "student") -> dict[str, torch.Tensor]:
    return load_network(path, which).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def of_backbone(path: Path, which: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state(path, which).items() if k.startswith("backbone.")}


def starts(run: Path) -> dict[str, str]:
    """By part, the second column of the run's table."""
    rows = [line.split("|") for line in (run / FILE).read_text().splitlines() if "|" in line]
    return {row[1].strip(): row[2].strip() for row in rows[2:]}


def test_what_was_kept_answers_as_before(old: Path, grown: Path) -> None:
    """The test split before the first step, every number of it, is that of the published teacher;
    new heads know nothing."""
    before = json.loads((old / "results.json").read_text())["teacher"]
    start = json.loads((grown / "start.json").read_text())
    assert {key: start[key] for key in OLD} == before
    assert list(start) == TASKS


def test_the_table_is_in_the_report_and_the_start_in_the_recipe(
    published: Path, grown: Path
) -> None:
    text = (grown / FILE).read_text()
    assert text.strip() in (grown / "report.md").read_text()
    states = starts(grown)
    assert states["backbone"] == "taken"
    assert [states[f"head {key}"] for key in TASKS] == ["taken", "taken", "new", "new"]
    config = yaml.safe_load((grown / "config.yaml").read_text())
    assert (config["init_from"], config["init_which"]) == (str(published), "teacher")


def test_what_it_began_as_travels_with_the_model(grown: Path) -> None:
    ark("export", grown, grown.parent / "grown_published")
    start = read_config(grown.parent / "grown_published").start
    assert start is not None
    assert (start["name"], start["which"], start["start"]) == ("old", "teacher", None)
    assert {name.partition("/")[0] for name in OLD} == set(start["data"])


def test_a_run_its_checkpoint_and_its_model_are_the_same_start(
    recipe: Path, old: Path, grown: Path
) -> None:
    """Before the first step all three are the published teacher's."""
    for n, where in enumerate((old, old / "model", old / "checkpoints" / "last.ckpt")):
        fit(recipe, f"same{n}", f"--init_from={where}", "--trainer.max_steps=1")
        start = json.loads((recipe.parent / "runs" / f"same{n}" / "start.json").read_text())
        assert start == json.loads((grown / "start.json").read_text())


def test_a_requeued_job_goes_on_and_needs_the_start_no_more(
    recipe: Path, published: Path, grown: Path
) -> None:
    moved = shutil.copytree(published, published.parent / "moved")
    command = [f"--init_from={moved}", "--ckpt_path=auto", "--run.checkpoint_every=2"]
    fit(recipe, "requeued", *command, "--trainer.max_steps=5")
    shutil.rmtree(moved)
    fit(recipe, "requeued", *command)  # the same command, once more
    run = recipe.parent / "runs" / "requeued"
    for which in ("student", "teacher"):
        assert equal(state(run, which), state(grown, which))
    report = (run / "report.md").read_text()
    assert f"start: {moved} (teacher), and resumed" in report
    assert (run / FILE).read_text().strip() in report


def test_another_start_than_that_of_the_run_is_refused(
    recipe: Path, old: Path, grown: Path, capsys
) -> None:
    del grown
    error = refused(recipe, "grown", f"--init_from={old}", "--ckpt_path=last", capsys=capsys)
    assert "ckpt_path: the checkpoint's run had init_from = " in error
    assert f"this one has {old};" in error


def test_a_renamed_head_is_taken(recipe: Path, published: Path) -> None:
    """The dataset under another name, and the backbone's weights of the recipe are not read."""
    folder = recipe.parent
    dataset = yaml.safe_load((folder / "tiny_findings.yaml").read_text())
    dataset |= {"name": "hospital", "shards": str(folder / "shards" / "hospital")}
    (folder / "hospital.yaml").write_text(yaml.safe_dump(dataset))
    changed = folder / "renamed.yaml"
    changed.write_text(
        yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"datasets": ["hospital.yaml"]})
    )
    names = "{hospital/findings: tiny_findings/findings}"
    options = ["--trainer.max_steps=1", "--model.backbone.weights=not/there.pth"]
    fit(changed, "renamed", f"--init_from={published}", f"--init_names={names}", *options)
    text = (folder / "runs" / "renamed" / FILE).read_text()
    assert "was tiny_findings/findings" in text
    assert "| head tiny_boxes/boxes" in text


def refused(recipe: Path, name: str, *args: str, capsys) -> str:
    """What `ark fit` says when it refuses: one line."""
    with pytest.raises(SystemExit) as stopped:
        fit(recipe, name, *args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ark: ")]
    assert (stopped.value.code, len(lines)) == (2, 1)
    return lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--init_from=/no/such/run"], "init_from: /no/such/run: no such folder"),
        (["--model.backbone.name=test_vit"], "has the backbone 'test_efficientnet', but"),
        (["--init_names={tiny_boxes/boxes: tiny/typo}"], "'tiny/typo' is no task of"),
        (["--init_names={tiny/typo: tiny_boxes/boxes}"], "'tiny/typo' (before the colon) is no"),
        (["--init_which=student"], "holds the teacher alone"),
    ],
)
def test_mistakes_are_said_in_one_line(
    recipe: Path, published: Path, args: list[str], message: str, capsys
) -> None:
    assert message in refused(recipe, "wrong", f"--init_from={published}", *args, capsys=capsys)
    assert not (recipe.parent / "runs" / "wrong" / "checkpoints").exists()


def downstream(name: str, recipe: Path, start: Path, *more: object) -> Path:
    """`configs/recipes/NAME.yaml` in front of tiny datasets; returns the run's folder."""
    data = [f"--datasets+={recipe.parent / 'tiny_organs.yaml'}"]
    data += ["--data.only=[tiny_organs/diagnosis]", "--data.image_size=96", "--data.batch_size=4"]
    data += ["--data.workers=0", "--model.backbone.name=test_efficientnet", "--run.wandb=off"]
    root = recipe.parent / "runs"
    fit(RECIPES / f"{name}.yaml", name, f"--run.root={root}", f"--init_from={start}", *data, *more)
    return root / name


@pytest.mark.parametrize("name", ["linear_probe", "head_only"])
def test_a_backbone_that_stands_still_is_equal_to_the_last_bit(
    name: str, recipe: Path, published: Path, old: Path
) -> None:
    run = downstream(name, recipe, published, "--cycle.cycles=2")
    before = of_backbone(old, "teacher")
    for which in ("student", "teacher"):
        assert equal(of_backbone(run, which), before)
    first = json.loads((run / "start.json").read_text())
    assert first != json.loads((run / "results.json").read_text())["student"]  # the head trained


def test_fine_tuning_stops_when_validation_rises_no_more(
    recipe: Path, published: Path, old: Path
) -> None:
    stop = "{class_path: pytorch_lightning.callbacks.EarlyStopping, init_args: "
    stop += "{monitor: val/score, mode: max, patience: 2, min_delta: 1.0}}"
    run = downstream("finetune", recipe, published, f"--trainer.callbacks=[{stop}]")
    report = (run / "report.md").read_text()
    assert "9 optimiser steps, 200 cycles" in report  # of 3 steps: the first one and two more
    assert list((run / "checkpoints").glob("best-*.ckpt"))
    assert not equal(of_backbone(run, "student"), of_backbone(old, "teacher"))


@pytest.mark.slow  # a process a task
def test_each_task_alone_starts_there_too(recipe: Path, published: Path) -> None:
    old, new = OLD[0], "tiny_organs/diagnosis"
    names = "{tiny_organs/diagnosis: null}"
    options = [f"--init_from={published}", f"--init_names={names}", f"--data.only=[{old},{new}]"]
    fit(recipe, "joint", *options, "--run.alone=true")
    for key in (old, new):
        found = starts(recipe.parent / "runs" / "joint" / "alone" / key)
        assert found["backbone"] == "taken"
        assert found[f"head {key}"] == ("taken" if key in OLD else "new")
        assert list(found.values()).count("dropped") == len({*OLD} - {key})


@pytest.mark.slow  # two processes
def test_two_ranks_start_alike(recipe: Path, published: Path, grown: Path) -> None:
    from test_ranks import ark_on

    options = ["--run.name=ranks", f"--init_from={published}", *SHORT, "--trainer.max_steps=1"]
    printed = ark_on(2, "fit", "--config", recipe, *options)
    assert printed.count("all tensors") == 1
    run = recipe.parent / "runs" / "ranks"
    here, there = (json.loads((p / "start.json").read_text()) for p in (run, grown))
    assert here == there
