"""What the trackers of a real run hold: W&B over two requeues, read back; TensorBoard; MLflow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import ark, write_recipe
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger
from wandb_read import Run, offline_runs
from wandb_server import KEY, serving

from ark.checkpoint import load_network
from ark.tracking import session as tracking
from ark.tracking.session import read_sessions
from ark.tracking.wandb_logger import AXIS
from ark.types import ConfigError

pytestmark = pytest.mark.xdist_group("tracked run")
TASKS = ("tiny_findings/findings", "tiny_boxes/boxes", "tiny_organs/organs")
STEPS = 12  # of the plan: two cycles of three passes of two steps
STOPS = (4, 9, None)  # in the middle of a pass, of a cycle; the end


def small_recipe(folder: Path, **trainer: Any) -> Path:
    return write_recipe(
        folder,
        data={"image_size": 64, "batch_size": 4, "workers": 0, "only": list(TASKS)},
        cycle={"cycles": 2, "each": [{"lock": ["backbone"], "steps": 1}, {"steps": 1}]},
        run={
            "root": str(folder / "runs"),
            "wandb": "offline",
            "pictures": 1,
            "panels": 2,
            "bootstraps": 0,
            "validate": "pass",
            "baseline": False,
            "checkpoint_every": 1,
            "artifacts": True,
        },
        trainer={
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            **trainer,
        },
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped and gone on with twice."""
    folder = tmp_path_factory.mktemp("tracked")
    recipe = small_recipe(folder)
    for number, stop in enumerate(STOPS):
        options = [f"--trainer.max_steps={stop}"] if stop else []
        options += ["--ckpt_path=last"] if number else []
        ark("fit", "--config", recipe, "--run.name=x", *options)
    return folder / "runs" / "x"


@pytest.fixture(scope="module")
def sessions(run: Path) -> list[Run]:
    return offline_runs(run)


def test_three_sessions_are_one_run(run: Path, sessions: list[Run]) -> None:
    assert len(sessions) == 3
    assert {session.id for session in sessions} == {(run / "wandb_id.txt").read_text()}
    assert {(session.name, session.project) for session in sessions} == {("x", "ark")}
    assert [session.exit_code for session in sessions] == [0, 0, 0]
    assert [session.run.resumed for session in sessions] == [False] * 3  # decided when it is synced
    assert len(read_sessions(run)) == 3


def test_every_loss_is_there_once_on_our_own_axis(run: Path, sessions: list[Run]) -> None:
    """The same numbers as in the CSV, at the same steps."""
    assert all(session.axes["*"] == AXIS for session in sessions)
    found: dict[str, dict[int, float]] = {}
    for session in sessions:
        for name in session.names():
            if name.startswith("train/"):
                found.setdefault(name, {}).update(session.series(name, AXIS))
    losses = {name: values for name, values in found.items() if name.endswith("/loss")}
    assert set(losses) == {f"train/{task}/loss" for task in TASKS}
    assert sorted(step for values in losses.values() for step in values) == list(range(STEPS))
    tables = [pd.read_csv(path) for path in sorted(run.glob("logs/version_*/metrics.csv"))]
    for name, values in found.items():
        csv: dict[int, float] = {}
        for table in tables:
            if name in table:
                csv |= table[["step", name]].dropna().set_index("step")[name].to_dict()
        assert csv == pytest.approx(values)


@pytest.mark.parametrize("split", ["val", "test"])
def test_student_and_teacher_are_scored(run: Path, sessions: list[Run], split: str) -> None:
    last = sessions[-1]
    heads = load_network(run).heads_by_key()
    for task in TASKS:
        for who in (split, f"{split}_teacher"):
            values = last.series(f"{who}/{task}/{heads[task].main_metric}", AXIS)
            assert values, (who, task)
    assert last.series(f"{split}_teacher/score", AXIS)


def test_the_config_is_the_recipe_the_code_the_machine_and_the_data(
    run: Path, sessions: list[Run]
) -> None:
    config = sessions[-1].config
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert {name: config[name] for name in recipe} == recipe
    assert config["sessions"] == 3
    assert config["environment"]["world_size"] == 1
    assert config["git"] == read_sessions(run)[-1]["git"]
    for name, version in config["versions"].items():
        index = run.parents[1] / "shards" / name / "_info.json"
        assert version["index"] == str(index)
        told = subprocess.run(["sha256sum", index], capture_output=True, text=True).stdout
        assert version["sha256"] == told.split()[0]
        assert version["samples"] == {"train": 12, "val": 6, "test": 6}
    assert set(config["versions"]) == {task.split("/")[0] for task in TASKS}


def test_boxes_and_masks_are_layers_over_the_image(sessions: list[Run]) -> None:
    """At every validation; the picture of a head without layers once a cycle."""
    for session, step in ((sessions[1], 6), (sessions[2], 12)):
        rows = [row for row in session.history if row[AXIS] == step]
        (boxes,) = (row for row in rows if "panels/tiny_boxes/boxes/count" in row)
        assert boxes["panels/tiny_boxes/boxes/count"] == 2
        (one, _) = boxes["panels/tiny_boxes/boxes/all_boxes"]
        assert set(one) == {"truth", "student", "teacher"}
        content = json.loads((session.folder / "files" / one["truth"]["path"]).read_text())
        assert content["class_labels"]
        assert all(0 <= box["position"]["minX"] <= 64 for box in content["box_data"])
        (masks,) = (row for row in rows if "panels/tiny_organs/organs/count" in row)
        (one, _) = masks["panels/tiny_organs/organs/all_masks"]
        assert {"truth", "student", "teacher"} <= set(one)
        mask = Image.open(session.folder / "files" / one["truth"]["path"])
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3}
        assert np.asarray(mask).any()
    name = "panels/tiny_findings/findings/filenames"
    drawn = [[row for row in session.history if name in row] for session in sessions]
    # sessions of steps 0 to 3, 4 to 8 and 9 to 11, of which 6 begins a cycle
    assert [len(rows) for rows in drawn] == [1, 2, 1]
    picture = sessions[0].folder / "files" / drawn[0][0][name][0]
    assert Image.open(picture).width > 3 * 64  # truth, student, teacher


def test_the_last_picture_of_each_task_is_there(sessions: list[Run]) -> None:
    for task in TASKS:
        (row,) = (row for row in sessions[-1].history if f"pictures/{task}/filenames" in row)
        assert row[AXIS] == STEPS
        (name,) = row[f"pictures/{task}/filenames"]
        assert (sessions[-1].folder / "files" / name).is_file()


def table(session: Run, name: str) -> list[pd.DataFrame]:
    found = []
    for row in session.history:
        if f"{name}/path" in row:
            content = json.loads((session.folder / "files" / row[f"{name}/path"]).read_text())
            found.append(pd.DataFrame(content["data"], columns=content["columns"]))
    return found


def test_scores_by_class_are_a_table(run: Path, sessions: list[Run]) -> None:
    last = sessions[-1]
    val, (test,) = table(last, "classes/val")[-1], table(last, "classes/test")
    tasks = load_network(run).tasks
    for task in TASKS:
        mine = val[val.task == task]
        assert set(mine["class"]) == set(tasks[task].classes)
        assert list(mine.columns) == ["task", "class", "metric", "student", "teacher"]
    results = json.loads((run / "results.json").read_text())
    for row in test.itertuples():
        for who in ("student", "teacher"):
            expected = results[who][row.task][f"{row.metric}/{row[2]}"]
            value = getattr(row, who)
            assert (expected is None) == pd.isna(value)
            assert expected is None or value == pytest.approx(expected)


def test_the_forgetting_matrix_is_a_table_a_picture_and_curves(
    run: Path, sessions: list[Run]
) -> None:
    matrix = table(sessions[-1], "forgetting/matrix")[-1]
    written = pd.read_csv(run / "forgetting.csv")
    assert len(matrix) == len(written) == 2 * 6  # validations
    for who in ("student", "teacher"):
        for task in TASKS:
            mine = matrix[matrix.who == who][task].astype(float)
            assert mine.to_list() == pytest.approx(
                written[written.who == who][task].to_list(), nan_ok=True
            )
    assert any("forgetting/heat_map/filenames" in row for row in sessions[-1].history)
    numbers = json.loads((run / "forgetting.json").read_text())
    values = sessions[-1].series("forgetting/student/forgetting", AXIS)
    assert values[STEPS] == pytest.approx(numbers["student"]["forgetting"]["mean"])


def test_speed_memory_teacher_and_plan(sessions: list[Run]) -> None:
    found: dict[str, dict[int, float]] = {}
    for session in sessions:
        for name in (
            *("speed/steps_per_s", "speed/samples_per_s", "memory/rss_gb", "plan/cycle"),
            *("teacher/momentum", "teacher/consistency_weight", "speed/data_wait"),
        ):
            found.setdefault(name, {}).update(session.series(name, AXIS))
    for name in ("speed/steps_per_s", "teacher/momentum", "memory/rss_gb"):
        assert sorted(found[name]) == list(range(STEPS))
    for step, speed in found["speed/steps_per_s"].items():
        assert found["speed/samples_per_s"][step] == pytest.approx(4 * speed)
    assert found["plan/cycle"] == {step: 1 + step // 6 for step in range(STEPS)}
    assert set(found["teacher/momentum"].values()) == {0.99}
    assert all(0 <= share <= 1 for share in found["speed/data_wait"].values())
    assert any(name.startswith("lr-") for name in sessions[0].names())


def test_artifacts_say_which_data_they_come_from(run: Path, sessions: list[Run]) -> None:
    ours = [a for a in sessions[-1].of("artifact") if a.type != "run_table"]
    found = {(a.type, alias): a for a in ours for alias in a.aliases if alias != "latest"}
    last, best = found["checkpoint", "last"], found["checkpoint", "best"]
    assert {entry.path for entry in last.manifest.contents} == {"last.ckpt"}
    assert best.name == last.name == f"checkpoint-{sessions[-1].id}"
    versions = sessions[-1].config["versions"]
    for artifact in (last, best):
        assert json.loads(artifact.metadata)["datasets"] == versions
    data = {a.name: a for a in ours if a.type == "dataset"}
    assert set(data) == set(versions)
    for name, artifact in data.items():
        assert json.loads(artifact.metadata)["sha256"] == versions[name]["sha256"]
    (model,) = (a for a in ours if a.type == "model")
    held = {entry.path for entry in model.manifest.contents}
    assert held == {path.name for path in (run / "model").iterdir()}
    staged = Path(last.manifest.contents[0].local_path)
    assert run.resolve() in staged.parents  # not in somebody's home


def test_the_dashboard_shows_what_was_logged(run: Path, sessions: list[Run]) -> None:
    pytest.importorskip("wandb_workspaces")
    path = Path(__file__).parents[1] / "tools" / "wandb_dashboard.py"
    spec = importlib.util.spec_from_file_location("wandb_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    workspace = tool.dashboard(tool.logged(run), "me", "ark")
    names = set().union(*(session.names() for session in sessions))
    titles = [section.name for section in workspace.sections]
    assert titles == ["overview", *sorted(TASKS), "forgetting", "plan and machine"]
    lines = media = 0
    for section in workspace.sections:
        for panel in section.panels:
            for metric in getattr(panel, "y", []):
                assert metric in names
                lines += 1
            for key in getattr(panel, "media_keys", []):
                assert f"{key}/filenames" in names
                media += 1
            if hasattr(panel, "table_name"):
                assert f"{panel.table_name}/path" in names
    assert lines > 30
    assert media == 2 * len(TASKS) + 1
    assert workspace._to_model().model_dump_json()  # what would be sent


@pytest.mark.slow  # sends some hundred files
def test_what_was_offline_syncs_into_one_run(sessions: list[Run]) -> None:
    with serving() as server:
        env = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        env |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_ENTITY": "me"}
        folders = [str(session.folder) for session in sessions]
        command = [sys.executable, "-m", "wandb", "sync", *folders]
        options: dict[str, Any] = {"env": env, "cwd": sessions[0].folder.parent, "timeout": 240}
        done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    ((name, sent),) = server.runs.items()
    assert name == sessions[0].id
    rows = [row for session in sessions for row in session.history]
    assert sorted(sent.history) == list(range(len(rows)))  # no line over another
    losses = sorted(
        row[AXIS]
        for row in sent.history.values()
        if any(name.startswith("train/") and name.endswith("/loss") for name in row)
    )
    assert losses == list(range(STEPS))
    assert sent.exit_code == 0
    kinds = {artifact["artifactTypeName"] for artifact in server.artifacts}
    assert kinds == {"run_table", "dataset", "checkpoint", "model"}


# -- other loggers --------------------------------------------------------------------------


def fit_with(folder: Path, logger: dict[str, Any]) -> Path:
    """One cycle with the CSV and another logger, both named in the YAML."""
    csv = {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder / "csv"), "name": "a"}}
    recipe = small_recipe(folder, logger=[csv, logger])
    ark("fit", "--config", recipe, "--run.name=y", "--cycle.cycles=1")
    return folder / "csv" / "a" / "version_0" / "metrics.csv"


def expected(csv: Path) -> dict[str, dict[int, float]]:
    rows = pd.read_csv(csv).set_index("step")
    names = [name for name in rows if name.split("/")[0] in ("train", "val", "test", "teacher")]
    # the last one where a step has several, as of a validation that is done again
    found = {n: rows[n].dropna().groupby(level=0).last().to_dict() for n in names}
    return {name: values for name, values in found.items() if values}


def test_tensorboard_gets_the_same_numbers_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = {"save_dir": str(tmp_path / "tb"), "name": "a"}
    csv = fit_with(tmp_path, {"class_path": "TensorBoardLogger", "init_args": place})
    events = EventAccumulator(str(tmp_path / "tb" / "a" / "version_0"), {"scalars": 0, "images": 0})
    events.Reload()
    wanted = expected(csv)
    assert len(wanted) > 30
    for name, values in wanted.items():
        found = {event.step: event.value for event in events.Scalars(name)}
        assert {k: v for k, v in found.items() if not np.isnan(v)} == pytest.approx(
            values, rel=1e-5
        )
    shown = set(events.Tags()["images"])
    assert shown == {
        *(f"panels/{task}" for task in TASKS),
        *(f"pictures/{task}" for task in TASKS),
        "forgetting/heat_map",
    }
    assert {"classes/val/text_summary", "classes/test/text_summary"} <= set(
        events.Tags()["tensors"]
    )


def test_mlflow_gets_the_same_numbers_and_pictures(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    place = {"experiment_name": "ark", "tracking_uri": f"sqlite:///{tmp_path / 'ml.db'}"}
    place["artifact_location"] = (tmp_path / "artifacts").as_uri()
    csv = fit_with(tmp_path, {"class_path": "MLFlowLogger", "init_args": place})
    client = mlflow.MlflowClient(place["tracking_uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'ark'")
    (found,) = client.search_runs([experiment.experiment_id])
    for name, values in expected(csv).items():
        history = client.get_metric_history(found.info.run_id, name)
        last = {point.step: point.value for point in history if not np.isnan(point.value)}
        assert last == pytest.approx(values)
    assert found.data.params["cycle/cycles"] == "1"
    held = {path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    for name in ("panels", "pictures"):
        for task in TASKS:
            assert any(h.startswith(f"{name}/{task}+step".replace("/", "~")) for h in held), held
    assert "sessions.json" in held


def test_a_logger_that_cannot_hold_our_names_is_refused(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases refuse by themselves
    logger = MLFlowLogger("ark", save_dir=str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"tracking_uri: sqlite:///"),
        tracking.session([logger], tmp_path, {}, {}),
    ):
        pass
