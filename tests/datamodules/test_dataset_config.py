"""From a dataset's YAML to an index and task specs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from omegaconf import OmegaConf

from ark.types import ConfigError
from datamodules import commands
from datamodules.config import DatasetConfig, TaskConfig, load_datasets, prepare, task_specs


@pytest.fixture
def yaml(folder, tmp_path):
    """Writes the tiny dataset's YAML and returns its path."""

    def write(**changes):
        item = folder.config(tmp_path / "shards" / "tiny") | changes
        path = tmp_path / "tiny.yaml"
        OmegaConf.save(item, path)
        return str(path)

    return write


def phantom(tmp_path, **changes):
    args = {"preset": "boxes", "train": 3, "val": 1, "test": 0, "size": 96} | changes
    source = {"class_path": "datamodules.phantoms.PhantomSource", "init_args": args}
    return DatasetConfig("ghost", str(tmp_path / "ghost"), [TaskConfig("boxes")], source)


def test_write_prepare_and_task_specs(yaml, capsys):
    commands.write([yaml()])
    output = capsys.readouterr().out
    assert "note: " in output
    assert "1 rows are in no split" in output
    assert "organs (segmentation)" in output
    (dataset,) = load_datasets(yaml())
    specs = task_specs(dataset, prepare(dataset))
    assert [spec.key for spec in specs][:2] == ["tiny/findings", "tiny/view"]
    assert specs[1].classes == ("PA", "AP Supine")
    assert specs[1].head == {"class_path": "x.Y"}


def test_the_command_takes_several_files_and_options(yaml, tmp_path, capsys):
    path = yaml()
    commands.shards(["write", path])
    with pytest.raises(ConfigError):
        commands.shards(["write", path])
    other = tmp_path / "other.yaml"
    text = (tmp_path / "tiny.yaml").read_text()
    other.write_text(
        text.replace("name: tiny", "name: other").replace("shards/tiny", "shards/other")
    )
    commands.shards(["write", path, str(other), "--overwrite=true"])
    commands.shards(["inspect", str(tmp_path / "shards" / "other"), "--count=2"])
    assert "other  (" in capsys.readouterr().out


def test_inspect_says_and_draws(yaml, tmp_path, capsys):
    commands.write([yaml()])
    shards = tmp_path / "shards" / "tiny"
    commands.inspect(str(shards))
    output = capsys.readouterr().out
    assert "Effusion" in output
    assert (shards / "samples.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no folder"):
        commands.inspect(str(shards), picture=str(tmp_path / "no" / "x.png"))
    with pytest.raises(ConfigError, match="count is 0"):
        commands.inspect(str(shards), count=0)


def test_environment_variables_are_resolved(yaml, folder, monkeypatch):
    monkeypatch.setenv("ARK_TEST_ROOT", folder.args["root"])
    folder.args["root"] = "${oc.env:ARK_TEST_ROOT}"
    (dataset,) = load_datasets(yaml())
    assert dataset.source["init_args"]["root"] == str(folder.root)


def test_no_shards_names_the_command(yaml):
    with pytest.raises(ConfigError, match=r"`ark shards write configs/datasets/tiny\.yaml`"):
        prepare(load_datasets(yaml())[0])


def test_no_shards_and_no_source(yaml):
    with pytest.raises(ConfigError, match="no `source` to write them from"):
        prepare(load_datasets(yaml(source=None))[0])


def test_shards_are_enough_without_a_source(yaml):
    commands.write([yaml()])
    assert prepare(load_datasets(yaml(source=None))[0]).num_samples("train") == 4


def test_a_changed_source_is_noticed_but_not_a_moved_one(yaml, folder):
    commands.write([yaml()])
    moved = folder.root.rename(folder.root.with_name("moved"))
    folder.args["root"] = str(moved)
    prepare(load_datasets(yaml())[0])
    folder.annotation("view")["classes"].reverse()
    with pytest.raises(ConfigError, match=r"source 'annotations' changed.*--overwrite true"):
        prepare(load_datasets(yaml())[0])


def test_phantoms_are_written_on_first_use_by_one_of_many(tmp_path):
    dataset = phantom(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        indices = list(pool.map(prepare, [dataset] * 4))
    assert [index.num_samples("train") for index in indices] == [3] * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ghost.lock", "ghost"]
    with pytest.raises(ConfigError, match="source 'seed' changed"):
        prepare(phantom(tmp_path, seed=1))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([TaskConfig("masks")], r"task 'masks' is no annotation of .* it has \['boxes'\]"),
        ([TaskConfig("boxes"), TaskConfig("boxes")], "task 'boxes' is listed more than once"),
    ],
)
def test_wrong_tasks(tmp_path, tasks, words):
    dataset = phantom(tmp_path, train=1, val=0)
    dataset.tasks = tasks
    with pytest.raises(ConfigError, match=words):
        task_specs(dataset, prepare(dataset))


def test_a_task_without_training_samples(yaml, folder):
    for stem in "ab":
        folder.path(f"masks/heart/{stem}.png").unlink()
        folder.path(f"masks/left lung/{stem}.png").unlink(missing_ok=True)
    commands.write([yaml()])
    (dataset,) = load_datasets(yaml())
    with pytest.raises(ConfigError, match="task 'organs': no training sample carries it"):
        task_specs(dataset, prepare(dataset))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: {}", "at least `name` and `shards`"),
        ("[x]", "at least `name` and `shards`"),
        ("{name: x, shards: y, colour: z}", "unknown key 'colour'"),
        ("{name: x, shards: y, tasks: [{nam: z}]}", "a task of 'x'"),
        ("{name: x, shards: '${oc.env:ARK_NOT_SET}'}", "ARK_NOT_SET"),
    ],
)
def test_wrong_yaml(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_datasets(str(path))


def test_no_such_yaml():
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_datasets("none.yaml")


def test_two_datasets_of_one_name(yaml):
    with pytest.raises(ConfigError, match="two datasets are named 'tiny'"):
        load_datasets([yaml(), yaml()])
