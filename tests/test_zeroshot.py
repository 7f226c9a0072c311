"""`ark zeroshot` through the real command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from commands import ark, write_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A short run on masks and a diagnosis, and a dataset like it that it never saw."""
    recipe = write_recipe(
        tmp_path,
        run={"root": str(tmp_path / "runs"), "wandb": "off", "pictures": 0, "baseline": False},
        cycle={"cycles": 1, "each": [{"steps": 1}]},
        data={
            "image_size": 64,
            "batch_size": 4,
            "workers": 0,
            "only": ["tiny_organs/organs", "tiny_organs/diagnosis"],
        },
    )
    ark("fit", "--config", recipe, "--run.name=run")
    other = yaml.safe_load((tmp_path / "tiny_organs.yaml").read_text())
    other |= {"name": "other", "shards": str(tmp_path / "shards" / "other")}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    (tmp_path / "ontology.yaml").write_text("Heart: {}\n")
    return tmp_path / "runs" / "run"


def test_heads_score_another_dataset(run: Path, capsys) -> None:
    folder = run.parents[1]
    ark("zeroshot", run, f"--datasets=[{folder / 'other.yaml'}]", "--workers=0",
        f"--ontology={folder / 'ontology.yaml'}", f"--output={folder / 'new' / 'z.csv'}",
        "--bootstraps=50")  # fmt: skip
    rows = list(csv.DictReader((folder / "new" / "z.csv").open()))
    assert {row["head"] for row in rows} == {"tiny_organs/organs", "tiny_organs/diagnosis"}
    assert {row["task"] for row in rows} == {"other/organs", "other/diagnosis"}
    heart = next(row for row in rows if row["class"] == "heart")
    assert heart["metric"] == "dice"
    assert float(heart["low"]) <= float(heart["value"]) <= float(heart["high"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --datasets=.* and --ontology="),
        (["--datasets=[{0}/tiny_organs.yaml]", "--ontology={0}/ontology.yaml"], "own task"),
        (["--datasets=[{0}/none.yaml]", "--ontology={0}/ontology.yaml"], "none.yaml: no such file"),
    ],
)
def test_nothing_to_score_says_why(run: Path, options, message, capsys) -> None:
    folder = run.parents[1]
    with pytest.raises(SystemExit):
        ark("zeroshot", run, *(option.format(folder) for option in options))
    import re

    assert re.search(message, capsys.readouterr().err)
