from __future__ import annotations

import pytest

from ark import alone, report
from ark.network import Network
from ark.run import RunConfig
from toys import SIZE, make_task


@pytest.mark.parametrize("name", ["run", "group/run"])
def test_each_task_is_trained_once_a_recipe_below_the_run(name: str, tmp_path, monkeypatch) -> None:
    run = RunConfig(name=name, root=str(tmp_path))
    tasks = [make_task("multilabel"), make_task("multiclass")]
    network = Network({"name": "test_efficientnet", "image_size": SIZE}, None, tasks)
    trained: list[str] = []

    def train(child: str, key: str) -> None:
        trained.append(key)
        results = {who: {key: {"auroc": 0.5}} for who in ("student", "teacher")}
        report.write_json(tmp_path / child / report.RESULTS, results)

    monkeypatch.setattr(alone, "_train", train)
    for recipe in ("a", "a", "b"):
        alone.train_each(run, network, recipe)
    assert trained == ["toy/multilabel", "toy/multiclass"] * 2
    joined = report.read_json(tmp_path / name / "alone" / report.RESULTS)
    assert set(joined["alone teacher"]) == {"toy/multilabel", "toy/multiclass"}
