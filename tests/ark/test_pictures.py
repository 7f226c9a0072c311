from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ark.network import Network
from ark.pictures import draw
from ark.types import ClassPrediction
from toys import SIZE, make_batch, make_task


def test_each_column_is_drawn_by_the_head_that_predicted_it(tmp_path, monkeypatch) -> None:
    """Thresholds are chosen by each network for itself, and a picture shows them."""
    task = make_task("multilabel")
    networks = {
        who: Network({"name": "test_efficientnet", "image_size": SIZE}, None, [task])
        for who in ("student", "teacher")
    }
    drawn: list[tuple[Any, bool]] = []
    for network in networks.values():
        head = network.head(task.key)
        monkeypatch.setattr(
            head, "draw", lambda *args, truth, head=head: drawn.append((head, truth))
        )
    batch = make_batch("multilabel", 1)
    said = ClassPrediction(torch.full((1, 3), 0.5))
    item = {"key": "image0", "image": batch.images[0], "truth": batch.target}
    item |= {"student": said, "teacher": said}
    module: Any = SimpleNamespace(network=networks["student"], networks=networks)
    draw(module, task.key, [item], tmp_path / "pictures" / "findings.png")
    student, teacher = (networks[who].head(task.key) for who in ("student", "teacher"))
    assert drawn == [(student, True), (student, False), (teacher, False)]
    assert (tmp_path / "pictures" / "findings.png").is_file()
