"""Heads that the recipe chooses, in place of the datasets' YAMLs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ark, write_recipe

from ark.cycle import Phase
from ark.planning import CycleConfig
from ark.types import ConfigError, TaskSpec
from datamodules.config import load_datasets
from datamodules.mixture import Mixture
from datamodules.recipe_heads import choose_heads, choose_metrics
from toys import make_task

MINE, KIND, OWN = ({"class_path": f"x.{name}"} for name in ("Mine", "Kind", "Own"))


def spec(name: str, kind: Any, head: dict[str, Any] | None = None) -> TaskSpec:
    return TaskSpec("d", name, kind, ("a",), head or {})


SPECS = {s.key: s for s in (spec("m", "segmentation", MINE), spec("n", "segmentation"))}


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ({"d/n": OWN}, [MINE, OWN]),
        ({"segmentation": KIND}, [KIND, KIND]),
        ({"segmentation": KIND, "d/m": OWN}, [OWN, KIND]),
        ({"segmentation": KIND, "values": OWN}, [KIND, KIND]),
    ],
)
def test_a_tasks_own_goes_before_its_kinds_and_that_before_the_datasets(heads, expected) -> None:
    found = choose_heads(SPECS, heads)
    assert list(found) == list(SPECS)
    assert [one.head for one in found.values()] == expected
    assert [one.classes for one in found.values()] == [("a",)] * 2


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({}, ["task d/n: has no head", "`tasks`", "dataset 'd'", "data.heads", "'segmentation'"]),
        ({"d/n": OWN, "d/o": OWN}, ["data.heads: 'd/o'", "['d/m', 'd/n']", "'segmentation'"]),
        ({"boxes": OWN}, ["data.heads: 'boxes' is neither a task nor a kind", "'detection'"]),
        ({"d/n": "x.Own"}, ["data.heads: d/n is 'x.Own'", "class_path"]),
        ({"d/n": {"init_args": {}}}, ["data.heads: d/n is {'init_args': {}}", "class_path"]),
        ({"d/n": {}}, ["data.heads: d/n is {}"]),
    ],
)
def test_what_cannot_be(heads: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_heads(SPECS, heads)
    for word in words:
        assert word in str(caught.value), caught.value


# -- through the command -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, of which the masks' names no head."""
    folder = tmp_path_factory.mktemp("heads")
    path = write_recipe(folder, datasets=["tiny_organs.yaml"])
    dataset = yaml.safe_load((folder / "tiny_organs.yaml").read_text())
    del dataset["tasks"][0]["head"]
    (folder / "tiny_organs.yaml").write_text(yaml.safe_dump(dataset))
    return path


def test_a_mixture_takes_them(recipe: Path) -> None:
    datasets = load_datasets([str(recipe.parent / "tiny_organs.yaml")])
    cycle = CycleConfig(cycles=1, each=[Phase(steps=1)])
    with pytest.raises(ConfigError, match="task tiny_organs/organs: has no head"):
        Mixture(datasets, cycle)
    heads = {"segmentation": KIND, "tiny_organs/diagnosis": OWN}
    assert [task.head for task in Mixture(datasets, cycle, heads=heads).tasks] == [KIND, OWN]


def say(recipe: Path, capsys, *options: str) -> str:
    """What `ark fit` says before it stops."""
    with pytest.raises(SystemExit) as error:
        ark("fit", "--config", recipe, "--run.name=heads", *options)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("ark: error:") == 1
    return said


def test_they_reach_the_network_from_the_command_line_and_from_yaml(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    """Each refuses its arguments, which shows that it was built with them."""
    wrong = "{class_path: heads.segmentation.SegmentationHead, init_args: {decoder: Unett}}"
    said = say(recipe, capsys, f"--data.heads={{segmentation: {wrong}}}")
    assert "tiny_organs/organs" in said
    assert "Unett" in said
    own = tmp_path / "own.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["datasets"] = [str(recipe.parent / "tiny_organs.yaml")]
    content["data"]["heads"] = {"tiny_organs/organs": yaml.safe_load(wrong)}
    own.write_text(yaml.safe_dump(content))
    assert "Unett" in say(own, capsys)
    other = f"--data.heads={{tiny_organs/organs: {wrong.replace('Unett', 'Unettt')}}}"
    assert "Unettt" in say(own, capsys, other)


def test_wrong_ones_stop_the_command(recipe: Path, capsys) -> None:
    assert "task tiny_organs/organs: has no head" in say(recipe, capsys)
    said = say(recipe, capsys, "--data.heads={masks: {class_path: x.Y}}")
    assert "data.heads: 'masks' is neither a task nor a kind of task" in said


def test_a_recipe_names_the_main_metric_of_a_kind_or_task() -> None:
    specs = {spec.key: spec for spec in (make_task("detection"), make_task("multilabel"))}
    own = replace(specs["toy/multilabel"], metric="auprc")
    found = choose_metrics(specs | {own.key: own}, {"detection": "map40"})
    assert {key: spec.metric for key, spec in found.items()} == {
        "toy/detection": "map40",
        "toy/multilabel": "auprc",
    }
    found = choose_metrics(found, {"detection": "map", "toy/detection": "map50"})
    assert found["toy/detection"].metric == "map50"
    with pytest.raises(ConfigError, match="'boxes' is neither a task nor a kind"):
        choose_metrics(specs, {"boxes": "map40"})
