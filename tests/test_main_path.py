"""The main path through the real command: fit, resume, test, predict."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import TASKS, ark, losses, write_recipe
from PIL import Image
from safetensors.torch import load_file

from ark.checkpoint import load_network
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import Address, ShardReader

MAIN = {
    "tiny_findings/findings": "auroc",
    "tiny_boxes/boxes": "map50",
    "tiny_organs/organs": "dice",
    "tiny_organs/diagnosis": "auroc",
}
GOLDEN = Path(__file__).parent / "golden" / "tiny_losses.json"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("main"))


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A whole run, never interrupted."""
    ark("fit", "--config", recipe, "--run.name=whole")
    return recipe.parent / "runs" / "whole"


def test_a_run_leaves_everything_in_its_folder(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"start", "student", "teacher"}
    for column in results.values():
        assert {task: MAIN[task] in metrics for task, metrics in column.items()} == dict.fromkeys(
            TASKS, True
        )
    report = (run / "report.md").read_text()
    assert all(task in report for task in TASKS)
    pictures = run / "pictures"
    drawn = {p.relative_to(pictures).with_suffix("").as_posix() for p in pictures.rglob("*.png")}
    assert drawn == set(TASKS)
    assert all(f"pictures/{task}.png" in report for task in TASKS)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["cycle"]["cycles"] == 2
    assert len(config["datasets"]) == 3
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert list((run / "checkpoints").glob("best-*.ckpt"))
    assert sorted(losses(run)) == list(range(24))


def test_the_losses_are_the_recorded_ones(run: Path) -> None:
    """A refactoring must not change what is computed. After a change that must, record anew:
    ARK_RECORD_GOLDEN=1 pytest tests/test_main_path.py, and say why in the commit."""
    if os.environ.get("ARK_RECORD_GOLDEN"):
        rows = {step: round(loss, 6) for step, loss in losses(run).items()}
        GOLDEN.write_text(json.dumps(rows, indent=1) + "\n")
    golden = {int(step): loss for step, loss in json.loads(GOLDEN.read_text()).items()}
    # other processors round otherwise, and what rounds otherwise drifts apart over the steps
    assert losses(run) == pytest.approx(golden, rel=2e-3)


def test_validation_is_logged_for_student_and_teacher_of_every_task(run: Path) -> None:
    header = (run / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    for task, metric in MAIN.items():
        assert f"val/{task}/{metric}" in header
        assert f"val_teacher/{task}/{metric}" in header


def test_the_saved_config_makes_the_same_run(run: Path) -> None:
    ark("fit", "--config", run / "config.yaml", "--run.name=again", "--run.baseline=false")
    again = run.parent / "again"
    assert losses(again) == losses(run)
    assert_same_weights(again, run)


@pytest.mark.parametrize("stop", [7, 12, 13], ids=["mid-phase", "cycle-end", "after-validation"])
def test_a_resumed_run_is_the_uninterrupted_run(run: Path, recipe: Path, stop: int) -> None:
    name = f"resumed{stop}"
    options = ["--config", recipe, f"--run.name={name}", "--run.baseline=false"]
    ark("fit", *options, f"--trainer.max_steps={stop}", f"--run.checkpoint_every={stop}")
    ark("fit", *options, "--ckpt_path=last")
    resumed = recipe.parent / "runs" / name
    assert sorted(losses(resumed)) == list(range(24))
    assert losses(resumed) == losses(run)
    assert_same_weights(resumed, run)


def test_accumulated_batches_resume_too_and_take_the_same_samples(recipe: Path) -> None:
    for name, steps in (("acc", [None]), ("acc-resumed", [5, None])):
        for stop in steps:
            options = ["--config", recipe, f"--run.name={name}", "--run.baseline=false"]
            options += ["--trainer.accumulate_grad_batches=2", "--run.checkpoint_every=5"]
            options += [f"--trainer.max_steps={stop}"] if stop else []
            options += ["--ckpt_path=last"] if not stop and len(steps) > 1 else []
            ark("fit", *options)
    runs = recipe.parent / "runs"
    assert_same_weights(runs / "acc", runs / "acc-resumed")


def test_locked_parts_are_at_the_end_what_they_were_at_the_start(recipe: Path) -> None:
    def backbone(cycles: int) -> dict[str, torch.Tensor]:
        name = f"locked{cycles}"
        options = ["--cycle.each=[{lock: [backbone], steps: 1}]", f"--cycle.cycles={cycles}"]
        ark("fit", "--config", recipe, f"--run.name={name}", "--run.baseline=false", *options)
        return load_file(recipe.parent / "runs" / name / "model" / "student.safetensors")

    one, three = backbone(1), backbone(3)
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], three[name])}
    assert moved == {"heads"}


def test_test_and_validate_score_a_checkpoint(run: Path, recipe: Path, capsys) -> None:
    last = run / "checkpoints" / "last.ckpt"
    ark("test", "--config", recipe, f"--ckpt_path={last}", "--run.name=whole")
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    table = {(row[1].strip(), row[2].strip()): row[3:5] for row in rows}
    results = json.loads((run / "results.json").read_text())
    for column, who in enumerate(("student", "teacher")):
        dice = results[who]["tiny_organs/organs"]["dice"]
        shown, low, _, high = re.findall(r"[\w.]+", table["tiny_organs/organs", "dice"][column])
        assert float(shown) == pytest.approx(dice, abs=6e-4)
        assert float(low) <= float(shown) <= float(high)
    ark("validate", "--config", recipe, f"--ckpt_path={last}", "--run.name=whole")
    text = capsys.readouterr().out
    assert "val split of" in text
    assert "tiny_boxes/boxes" in text


def test_predict_writes_classes_boxes_and_masks_in_the_images_own_pixels(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (40, 50)), ("a.png", (80, 100)), ("sub/b.png", (64, 64))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    out = tmp_path / "out"
    options = ["--which=student", "--score=0.0", "--workers=0"]
    ark("predict", run, folder, f"--output={out}", *options)
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [row["image"] for row in rows] == ["a.jpg", "a.png", "sub/b.png"]
    network = load_network(run)
    classes = network.tasks["tiny_organs/diagnosis"].classes
    total = sum(float(rows[0][f"tiny_organs/diagnosis/{name}"]) for name in classes)
    assert total == pytest.approx(1, abs=1e-5)
    masks = out / "masks" / "tiny_organs" / "organs" / "heart"
    sizes = {p.relative_to(masks).as_posix(): Image.open(p).size for p in masks.rglob("*.png")}
    # two images of one name keep both masks
    assert sizes == {"a.jpg.png": (50, 40), "a.png.png": (100, 80), "sub/b.png": (64, 64)}
    boxes = json.loads((out / "boxes" / "tiny_boxes" / "boxes.json").read_text())
    assert [c["name"] for c in boxes["categories"]] == list(
        network.tasks["tiny_boxes/boxes"].classes
    )
    assert boxes["annotations"], "no box at score 0"
    for box in boxes["annotations"]:
        image = boxes["images"][box["image_id"] - 1]
        x, y, w, h = box["bbox"]
        assert min(x, y, w, h) >= 0
        assert x + w <= image["width"] + 0.1
        assert y + h <= image["height"] + 0.1
    (skipped,) = csv.DictReader((out / "skipped.csv").open())
    assert skipped["image"] == "broken.jpg"


@pytest.mark.slow  # a process of its own
def test_a_task_alone_starts_where_the_joint_run_did(run: Path, recipe: Path) -> None:
    only = "--data.only=[tiny_organs/diagnosis]"
    options = ["--config", recipe, "--run.name=whole", "--run.alone=true", only]
    ark("fit", *options)
    alone = run / "alone"
    results = json.loads((alone / "results.json").read_text())
    assert set(results) == {"alone student", "alone teacher", "joint student", "joint teacher"}
    assert list(results["alone student"]) == ["tiny_organs/diagnosis"]
    # the first step of a task sees the same samples, from the same weights but for BatchNorm's
    assert sorted(losses(alone / "tiny_organs" / "diagnosis")) == list(range(6))
    stamp = (alone / "tiny_organs" / "diagnosis" / "results.json").stat().st_mtime_ns
    ark("fit", *options)  # finished: not trained again
    assert (alone / "tiny_organs" / "diagnosis" / "results.json").stat().st_mtime_ns == stamp


def test_switched_off_parts_of_the_trainer_are_left_out(recipe: Path) -> None:
    options = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    options += ["--trainer.enable_progress_bar=false", "--trainer.max_steps=1"]
    ark("fit", "--config", recipe, "--run.name=bare", "--run.baseline=false", *options)
    folder = recipe.parent / "runs" / "bare"
    assert (folder / "results.json").is_file()
    assert not (folder / "checkpoints").exists()
    assert not (folder / "logs").exists()


def test_bfloat16_trains(recipe: Path) -> None:
    options = ["--trainer.precision=bf16-mixed", "--trainer.max_steps=12", "--run.name=bf16"]
    ark("fit", "--config", recipe, "--run.baseline=false", *options)
    found = losses(recipe.parent / "runs" / "bf16")
    assert len(found) == 12
    assert all(np.isfinite(list(found.values())))


def test_the_last_checkpoint_is_of_the_end(recipe: Path) -> None:
    options = ["--cycle.cycles=3", "--run.validate_every=2", "--run.checkpoint_every=5"]
    options += ["--data.only=[tiny_organs/diagnosis]", "--run.name=end", "--run.baseline=false"]
    ark("fit", "--config", recipe, *options)
    folder = recipe.parent / "runs" / "end"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 9
    published = load_file(folder / "model" / "teacher.safetensors")
    for name, value in published.items():
        assert torch.equal(last["state_dict"][f"teacher.network.{name}"], value)


def test_predict_agrees_with_the_networks_own_output(run: Path, recipe: Path, tmp_path) -> None:
    index = ShardIndex.load(recipe.parent / "shards" / "tiny_organs")
    image = ShardReader(index).image(Address("test", 0, 0))
    (tmp_path / "images").mkdir()
    Image.fromarray(image[..., 0]).save(tmp_path / "images" / "x.png")
    ark("predict", run, tmp_path / "images", f"--output={tmp_path / 'out'}", "--workers=0")
    (row,) = csv.DictReader((tmp_path / "out" / "classes.csv").open())
    network = load_network(run)
    view = torch.from_numpy(image).permute(2, 0, 1)[None]
    for key, prediction in network(view).items():
        if hasattr(prediction, "probabilities") and prediction.probabilities.ndim == 2:
            values = prediction.probabilities[0].tolist()
            for name, value in zip(network.tasks[key].classes, values, strict=True):
                assert float(row[f"{key}/{name}"]) == pytest.approx(value, abs=1e-4)


def test_only_keeps_the_named_tasks(recipe: Path) -> None:
    ark("fit", "--config", recipe, "--run.name=only", "--data.only=[tiny_organs/organs]")
    results = json.loads((recipe.parent / "runs" / "only" / "results.json").read_text())
    assert list(results["student"]) == ["tiny_organs/organs"]


def assert_same_weights(one: Path, other: Path) -> None:
    for who in ("student", "teacher"):
        a, b = (load_file(run / "model" / f"{who}.safetensors") for run in (one, other))
        for name, value in a.items():
            assert torch.equal(value, b[name]), f"{who} {name}"
