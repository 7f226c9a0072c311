"""The example of docs/deployment.md, as somebody runs it who has neither Ark nor torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_models import image_file, make_network, publish

import ark
from ark.exporting.onnx_file import onnx

DOCS = Path(__file__).parents[3] / "docs" / "deployment.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters warn of their own future


def test_the_example_without_ark_gives_arks_predictions(tmp_path: Path) -> None:
    network = make_network("multilabel", "values", "detection", "segmentation")
    torch.nn.init.normal_(network.head("toy/detection").detector.bbox_head.atss_cls.weight, std=0.5)
    folder = publish(tmp_path / "published", network)
    onnx(str(folder), str(tmp_path / "model.onnx"))
    (tmp_path / "one.png").write_bytes(image_file())
    found = run_example(tmp_path)
    expected = ark.load(folder)(tmp_path / "one.png")
    for key in ("toy/multilabel", "toy/values"):
        values = {name: float(value[0]) for name, value in expected[key].items()}
        assert ast.literal_eval(found[key][0]) == pytest.approx(values, abs=1e-4)
    shares = {
        n: float((m[0] >= 0.5).float().mean()) for n, m in expected["toy/segmentation"].items()
    }
    assert ast.literal_eval(found["toy/segmentation"][0]) == pytest.approx(shares, abs=1e-3)
    boxes = expected["toy/detection"]
    label, score, *corners = found["toy/detection"][0].split(maxsplit=2)
    assert label == boxes["labels"][0][0]
    assert float(score) == pytest.approx(float(boxes["scores"][0][0]), abs=1e-4)
    assert ast.literal_eval(corners[0]) == pytest.approx(boxes["boxes"][0][0].tolist(), abs=0.1)


def run_example(folder: Path) -> dict[str, list[str]]:
    """What it prints, by the task that each line begins with."""
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code is not None
    nothing_else = "\nimport sys\nassert not {'ark', 'torch'} & set(sys.modules)\n"
    process = subprocess.run(
        [sys.executable, "-c", code[1] + nothing_else],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, list[str]] = {}
    for line in process.stdout.splitlines():
        key, _, rest = line.partition(" ")
        found.setdefault(key, []).append(rest)
    return found
