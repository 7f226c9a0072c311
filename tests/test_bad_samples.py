"""`ark fit` on shards with damaged samples: both policies, the ledger, and when to stop."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from commands import ark, write_recipe

from datamodules.config import load_datasets, prepare
from datamodules.tars.shards import Address, ShardReader
from datamodules.tars.stored import IMAGE

TASK = "tiny_findings/findings"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One task of 12 training samples, three passes of them."""
    return write_recipe(
        tmp_path,
        datasets=["tiny_findings.yaml"],
        data={"image_size": 32, "batch_size": 4, "workers": 2},
        cycle={"cycles": 3, "each": [{"passes": 1}]},
    )


def spoil(folder: Path, split: str, row: int) -> str:
    """Damages the image of a sample in the tar; returns its key."""
    reader = ShardReader(prepare(load_datasets([str(folder / "tiny_findings.yaml")])[0]))
    sample = reader.open(Address(split, 0, row))
    offset = int(sample.shard.table.members[IMAGE][0, row])
    with (folder / "shards/tiny_findings" / f"{split}-000000.tar").open("r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 255]))
    return sample.key


def test_error_names_the_place_in_one_line(recipe: Path, tmp_path: Path, capsys) -> None:
    key = spoil(tmp_path, "train", 5)
    with pytest.raises(SystemExit) as stop:
        ark("fit", "--config", recipe, "--run.baseline=false")
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    place = re.escape(str(tmp_path / "shards/tiny_findings/train-000000.tar"))
    assert re.match(
        rf"ark: error: {place}: sample '{key}', member 'image': .*damaged.*ark shards validate",
        said[0],
    )


def test_skip_goes_on_and_the_ledger_adds_up(recipe: Path, tmp_path: Path, caplog) -> None:
    bad = {spoil(tmp_path, "train", 5), spoil(tmp_path, "train", 6)}
    lost = spoil(tmp_path, "test", 2)
    ark("fit", "--config", recipe, "--data.on_bad=skip", "--data.max_bad=0.2")
    run = tmp_path / "runs/run"
    rows = list(csv.DictReader((run / "ledger.csv").open()))
    numbers = [
        [int(r[c]) for c in ("step", "planned", "seen", "skipped", "repeated")] for r in rows
    ]
    # each of the three passes meets both
    assert numbers == [[3, 12, 10, 2, 2], [6, 24, 20, 4, 4], [9, 36, 30, 6, 6]]
    assert rows[-1]["reasons"] == "6 checksum"
    noted = list(csv.DictReader((run / "skipped.csv").open()))
    assert {(row["task"], row["split"], row["reason"]) for row in noted} == {
        (TASK, "train", "checksum"),
        (TASK, "test", "checksum"),
    }
    assert len(noted) == 3
    for key in {*bad, lost}:
        assert sum(f"sample '{key}'" in row["problem"] for row in noted) == 1
        assert sum(f"skipped: {tmp_path}" in m and key in m for m in caplog.messages) == 1
    assert any(
        m == f"{TASK}: skipped in the test split: {{'checksum': 1}}" for m in caplog.messages
    )
    table = next(message for message in caplog.messages if "ledger: every sample" in message)
    assert re.search(rf"\| +9 \| {TASK} +\| +12 \| +36 \| +30 \| +6 \| +6 \| 6 checksum", table)
    assert f"every skipped sample is in {run / 'skipped.csv'}" in table


def test_skipping_is_resumed_as_it_was(recipe: Path, tmp_path: Path) -> None:
    """Substitutes are drawn from the position: the same after a resume, and on other workers."""
    spoil(tmp_path, "train", 5)
    options = ["--data.on_bad=skip", "--data.max_bad=0.2", "--run.baseline=false"]
    ark("fit", "--config", recipe, "--run.name=whole", *options)
    ark("fit", "--config", recipe, "--run.name=parts", *options, "--trainer.max_steps=6")
    more = ["--ckpt_path=last", "--data.workers=0"]
    ark("fit", "--config", recipe, "--run.name=parts", *options, *more)
    ends = [
        torch.load(tmp_path / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "parts")
    ]
    assert ends[0]["ark_ledger"] == ends[1]["ark_ledger"]
    assert ends[0]["ark_ledger"]["numbers"][TASK][2:] == [33, 0, 3, 0, 0]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


def test_too_many_bad_samples_stop_the_run(recipe: Path, tmp_path: Path, capsys) -> None:
    for row in (3, 5, 7):
        spoil(tmp_path, "train", row)
    options = ["--data.on_bad=skip", "--data.max_bad=0.2", "--run.baseline=false"]
    with pytest.raises(SystemExit):
        ark("fit", "--config", recipe, *options)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{TASK}: 3 of the 12 samples of the train split could not be used" in said
    assert "data.max_bad = 0.2" in said


def test_an_evaluation_batch_of_bad_samples_only(recipe: Path, tmp_path: Path) -> None:
    for row in (0, 1):
        spoil(tmp_path, "test", row)
    options = ["--data.on_bad=skip", "--data.max_bad=0.5", "--data.eval_batch_size=2"]
    ark("fit", "--config", recipe, *options)
    results = json.loads((tmp_path / "runs/run/results.json").read_text())
    assert results["teacher"][TASK]["auroc"] is not None


def test_a_missing_tar_is_found_before_training(recipe: Path, tmp_path: Path, capsys) -> None:
    spoil(tmp_path, "train", 0)  # makes sure that the shards are there
    (tmp_path / "shards/tiny_findings/test-000000.tar").unlink()
    with pytest.raises(SystemExit):
        ark("fit", "--config", recipe)
    assert "test-000000.tar: no such file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_debugging_run_may_evaluate_less(recipe: Path) -> None:
    options = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    options += ["--trainer.num_sanity_val_steps=1", "--data.eval_batch_size=2"]
    ark("fit", "--config", recipe, *options)
