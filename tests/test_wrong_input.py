"""Every mistake is one clear line before training starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import DATASETS, ark, write_recipe

from datamodules.config import load_datasets, prepare


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("wrong"))


WRONG = {
    "phase without a task": (["--cycle.each=[]", "--cycle.phases=[{steps: 1}]"], "task ''"),
    "phase of an unknown dataset": (
        ["--cycle.each=[]", "--cycle.phases=[{task: nih/findings, steps: 1}]"],
        "'nih/findings' is not one of this run's tasks",
    ),
    "no phase": (["--cycle.each=[]"], "exactly one of `phases`, `each` and `mix`"),
    "unknown lock": (["--cycle.each=[{lock: [neck], steps: 1}]"], "'neck' names no module"),
    "unknown backbone": (["--model.backbone.name=resnet_18"], "did you mean resnet18"),
    "unknown weights": (["--model.backbone.weights=x.pth"], "'x.pth' is no file"),
    "unknown task": (["--data.only=[a/b]"], "unknown task 'a/b'"),
    "no dataset": (["--datasets=[]"], "datasets: none is listed"),
    "batch that does not split": (
        ["--data.batch_size=5", "--trainer.accumulate_grad_batches=2"],
        "do not split over 1 ranks x 2",
    ),
    "everything locked": (
        ["--cycle.each=[{lock: [backbone, head], steps: 1}]"],
        "leaves nothing to train",
    ),
    "empty lock": (["--cycle.each=[{lock: [''], steps: 1}]"], "lock '' is empty"),
    "unknown kind": (["--cycle.each=[{kinds: [boxes], steps: 1}]"], "kinds ['boxes']"),
    "no batch": (["--data.batch_size=0"], "data.batch_size: 0"),
    "no image": (["--data.image_size=0"], "data.image_size: 0"),
    "no validation": (["--run.validate_every=0"], "validate_every=0"),
    "nothing to resume": (["--ckpt_path=last"], "no checkpoint"),
    "head of no task": (
        ["--data.heads={boxes: {class_path: x.Y}}"],
        "data.heads: 'boxes' is neither a task nor a kind of task; tasks: ['tiny_findings",
    ),
    "head without a class": (
        ["--data.heads={tiny_findings/findings: {init_args: {}}}"],
        "expected {class_path: ..., init_args: ...}",
    ),
    "unknown rate": (["--model.lr_scale={neck: 0.1}"], "lr_scale: 'neck' names no module"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe(name: str, recipe: Path, capsys) -> None:
    options, message = WRONG[name]
    with pytest.raises(SystemExit) as error:
        ark("fit", "--config", recipe, "--run.name=wrong", "--run.baseline=false", *options)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("ark: error:") == 1
    assert message in said


def edit(recipe: Path, dataset: str, old: str, new: str) -> Path:
    path = recipe.parent / f"{dataset}.yaml"
    text = path.read_text()
    assert old in text
    changed = recipe.parent / "changed.yaml"
    changed.write_text(text.replace(old, new))
    return changed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: findings", "name: labels", "is no annotation of"),
        ("name: findings", "name: findings\n  uncertain: maybe", "uncertain is 'maybe'; expected"),
        (
            "name: findings",
            "name: findings\n  uncertain: {edema: ones}",
            "findings: uncertain names 'edema'; expected one of the classes ['nodule'",
        ),
        ("heads.classification", "heads.nowhere", "no module 'heads.nowhere'"),
        ("ClassificationHead", "Other", "has no 'Other'"),
        ("train: 12", "train: 0", "expected train >= 1"),
        ("preset: findings", "preset: brains", "brains"),
        ("datamodules.phantoms", "datamodules.ghosts", "ghosts"),
        ("val: 6", "val: 0", "has no split 'val'"),
    ],
)
def test_a_wrong_dataset(old: str, new: str, message: str, recipe: Path, capsys) -> None:
    dataset = edit(recipe, "tiny_findings", old, new)
    text = dataset.read_text().replace("shards/tiny_findings", f"shards/{abs(hash(new))}")
    dataset.write_text(text)
    with pytest.raises(SystemExit) as error:
        ark("fit", "--config", recipe, f"--datasets=[{dataset}]", "--run.name=wrong")
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) < 8, "the message drowns"


def test_shards_of_another_dataset(recipe: Path, capsys) -> None:
    ark_options = ["fit", "--config", recipe, "--run.name=wrong"]
    other = edit(recipe, "tiny_findings", "name: tiny_findings", "name: other")
    other.write_text(other.read_text().replace("tiny_findings", "tiny_boxes"))
    prepare(load_datasets(str(recipe.parent / "tiny_boxes.yaml"))[0])
    with pytest.raises(SystemExit):
        ark(*ark_options, f"--datasets=[{other}]")
    assert "holds the shards of 'tiny_boxes'" in capsys.readouterr().err


def test_a_dataset_listed_twice(recipe: Path, capsys) -> None:
    twice = recipe.parent / f"{next(iter(DATASETS))}.yaml"
    with pytest.raises(SystemExit):
        ark("fit", "--config", recipe, f"--datasets+={twice}", "--run.name=wrong")
    assert "listed twice" in capsys.readouterr().err


def test_another_recipe_cannot_resume_a_run(recipe: Path, capsys) -> None:
    options = ["--config", recipe, "--run.name=first", "--run.baseline=false"]
    ark("fit", *options, "--trainer.max_steps=2", "--run.checkpoint_every=2")
    with pytest.raises(SystemExit):
        ark("fit", *options)
    assert "holds a run with checkpoints" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ark("fit", *options, "--ckpt_path=last", "--cycle.cycles=5")
    assert "the checkpoint's run had cycles = 2, this one has 5" in capsys.readouterr().err


def test_a_wrong_recipe_destroys_nothing(recipe: Path) -> None:
    options = ["--config", recipe, "--run.name=keep", "--run.baseline=false"]
    ark("fit", *options, "--trainer.max_steps=1", "--run.checkpoint_every=1")
    last = recipe.parent / "runs" / "keep" / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        ark("fit", *options, "--run.overwrite=true", "--model.backbone.name=resnet_18")
    assert last.stat().st_mtime_ns == before


def test_another_meaning_of_the_classes_is_refused(recipe: Path, tmp_path, capsys) -> None:
    """Equal shapes, other names: the weights would load, and every number would be of another
    class."""
    options = ["--config", recipe, "--run.name=classes", "--run.baseline=false"]
    ark("fit", *options, "--trainer.max_steps=1", "--run.checkpoint_every=1")
    index = recipe.parent / "shards" / "tiny_findings" / "_info.json"
    text = index.read_text()
    content = json.loads(text)
    content["annotations"]["findings"]["classes"].reverse()
    index.write_text(json.dumps(content))
    try:
        for command in ("fit", "test"):
            with pytest.raises(SystemExit):
                ark(command, *options, "--ckpt_path=last")
            assert "the checkpoint's run had tasks = " in capsys.readouterr().err
    finally:
        index.write_text(text)


def test_other_settings_cannot_resume_a_run(recipe: Path, capsys) -> None:
    options = ["--config", recipe, "--run.name=samples", "--run.baseline=false"]
    ark("fit", *options, "--trainer.max_steps=1", "--run.checkpoint_every=1")
    sgd = '--model.optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}'
    for change, message in (
        ("--data.batch_size=6", "had data.batch_size = 4, this one has 6"),
        (sgd, "had model.optimizer"),
        ("--model.momentum.init_args.value=0.5", "init_args.value = 0.99, this one has 0.5"),
        ("--data.augment.rotate=3", "data.augment.rotate"),
    ):
        with pytest.raises(SystemExit):
            ark("fit", *options, "--ckpt_path=last", change)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scoring_needs_a_checkpoint(command: str, recipe: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        ark(command, "--config", recipe, "--run.name=nothing")
    assert "add --ckpt_path=FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ark(command, "--config", recipe, "--run.name=nothing", "--ckpt_path=last")
    assert "no checkpoint" in capsys.readouterr().err


def test_predict_needs_images_and_a_checkpoint(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        ark("predict", tmp_path, tmp_path)
    assert "teacher.safetensors is missing" in capsys.readouterr().err


def test_unknown_commands(capsys) -> None:
    with pytest.raises(SystemExit):
        ark("train")
    assert "unknown command 'train'" in capsys.readouterr().err
    ark("--help")
    assert "predict" in capsys.readouterr().out
