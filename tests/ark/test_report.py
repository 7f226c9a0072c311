from __future__ import annotations

import math

from ark import report
from ark.network import Network
from ark.ontology import Ontology
from toys import SIZE, make_task


def make_heads() -> dict:
    tasks = [make_task("multilabel"), make_task("segmentation")]
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, tasks)
    return {key: network.head(key) for key in network.tasks}


def test_collect_takes_one_prefix_and_the_named_tasks() -> None:
    metrics = {"test/a/b/dice": 0.5, "test/a/b/dice/x": 0.1, "test_teacher/a/b/dice": 0.9,
               "test/a/bc/dice": 0.2, "test/score": 1.0}  # fmt: skip
    assert report.collect(metrics, "test", ["a/b"]) == {"a/b": {"dice": 0.5, "dice/x": 0.1}}
    assert report.collect(metrics, "test_teacher", ["a/b"]) == {"a/b": {"dice": 0.9}}


def test_the_report_has_a_row_a_metric_and_a_column_a_result(tmp_path) -> None:
    columns = {
        "start": {"toy/segmentation": {"dice": 0.1, "iou": 0.05}},
        "student": {
            "toy/multilabel": {"auroc": 0.75, "auroc/heart": 0.7},
            "toy/segmentation": {"dice": 0.9, "iou": 0.8},
        },
        "teacher": {},
    }
    short = report.write_report(tmp_path, "title", columns, ["a fact"], make_heads())
    lines = short.splitlines()
    assert "teacher" not in lines[0]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["auroc", "dice", "iou"]
    assert "0.900" in lines[3]
    assert "0.100" in lines[3]
    text = (tmp_path / "report.md").read_text()
    assert "auroc/heart" in text
    assert "- a fact" in text
    assert report.read_json(tmp_path / report.RESULTS) == columns


def test_what_could_not_be_measured_is_null(tmp_path) -> None:
    report.write_json(tmp_path / "x.json", {"a": {"b": float("nan"), "c": 1.0}})
    assert report.read_json(tmp_path / "x.json") == {"a": {"b": None, "c": 1.0}}


def test_infinity_is_null_too(tmp_path) -> None:
    report.write_json(tmp_path / "x.json", {"a": [float("inf"), (float("-inf"), 1.0)]})
    assert report.read_json(tmp_path / "x.json") == {"a": [None, [None, 1.0]]}


def test_an_interval_stands_behind_its_value(tmp_path) -> None:
    columns = {"student": {"toy/segmentation": {"dice": 0.9, "iou": 0.8}}}
    intervals = {"student": {"toy/segmentation": {"dice": (0.85, 0.95), "iou": (math.nan,) * 2}}}
    table = report.table(columns, make_heads(), intervals=intervals)
    assert "0.900 (0.850 to 0.950)" in table
    assert "0.800 " in table.splitlines()[-1]


def test_classes_of_one_concept_stand_together() -> None:
    ontology = Ontology.checked({"Thorax": {"synonyms": ["heart"]}, "Rib": {}})
    columns = {
        "student": {
            "toy/multilabel": {"auroc": 0.75, "auroc/heart": 0.7, "auprc/heart": 0.6},
            "toy/segmentation": {"dice": 0.9, "dice/heart": 0.8, "dice/lung": 0.4},
        }
    }
    lines = report.concepts(columns, make_heads(), ontology).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines]
    assert cells == [
        ["Thorax", "toy/multilabel", "auroc/heart", "0.700"],
        ["Thorax", "toy/segmentation", "dice/heart", "0.800"],
    ]
