"""`ark predict` of each form of one model, and what half precision changes in a published one."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from published_models import publish

import ark
from ark.checkpoint import save_networks
from ark.errors import ConfigError
from ark.exporting.onnx_file import onnx
from ark.exporting.opening import load_network
from ark.network import Network
from ark.published.export import export
from ark.types import TaskSpec
from datamodules.predicting import predict
from toys import CLASSES, HEADS

SIDE = 64
KINDS = ("multilabel", "multiclass", "values", "detection", "segmentation")
# of probabilities, measured 2.5e-4 and 1.9e-3 or less on this network
HALF = {"float16": 2e-3, "bfloat16": 2e-2}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters warn of their own future


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, its published folder, its ONNX file, and images of three sizes, one of them gray."""
    folder = tmp_path_factory.mktemp("forms")
    torch.manual_seed(0)
    args = {"detection": {"score_threshold": 0.05}}
    tasks = [
        TaskSpec("toy", k, k, CLASSES, {"class_path": HEADS[k], "init_args": args.get(k, {})})
        for k in KINDS
    ]
    network = Network({"name": "test_efficientnet", "image_size": SIDE}, None, tasks).eval()
    torch.nn.init.normal_(network.head("toy/detection").detector.bbox_head.atss_cls.weight, std=0.5)
    save_networks(folder / "run" / "model", teacher=network)
    export(str(folder / "run"), str(folder / "published"))
    onnx(str(folder / "published"), str(folder / "model.onnx"))
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for n, size in enumerate([(90, 70), (64, 64), (50, 120)]):
        coarse = generator.integers(0, 256, (8, 8, 1 if n == 1 else 3), dtype=np.uint8)
        image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{n}.png"), image)
    return folder


@pytest.mark.parametrize("form", ["published", "model.onnx"])
@pytest.mark.parametrize("tile", [0, 100])
def test_the_same_predictions_from_each_form(folder, tmp_path, form, tile):
    options = {"images": str(folder / "images"), "workers": 0, "tile": tile}
    predict(str(folder / "run"), output=str(tmp_path / "a"), **options)
    predict(str(folder / form), output=str(tmp_path / "b"), **options)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.*"))
    assert len(files) == 2 + 3 * len(CLASSES)
    first, second = (pd.read_csv(tmp_path / name / "classes.csv") for name in "ab")
    assert list(first) == list(second)
    assert list(first["image"]) == list(second["image"])
    numbers = list(first)[1:]
    np.testing.assert_allclose(first[numbers], second[numbers], rtol=1e-4, atol=1e-4)
    assert_same_boxes(*(tmp_path / name / "boxes/toy/detection.json" for name in "ab"))
    for name in files:
        if name.suffix == ".png":
            a, b = (cv2.imread(str(tmp_path / which / name), 0) for which in "ab")
            assert (a != b).mean() < 1e-3  # a pixel whose probability is .5


def assert_same_boxes(first, second):
    a, b = (json.loads(path.read_text()) for path in (first, second))
    assert a["images"] == b["images"]
    assert a["categories"] == b["categories"]
    assert len(a["annotations"]) == len(b["annotations"]) > 3

    def rows(content):  # boxes of nearly equal scores may change places
        found = [[x["image_id"], x["category_id"], *x["bbox"]] for x in content["annotations"]]
        return np.array(sorted(found))

    np.testing.assert_allclose(rows(a), rows(b), atol=0.021)


def test_the_other_network_is_refused(folder):
    for form in ("published", "model.onnx"):
        with pytest.raises(ConfigError, match="holds the teacher, not the student"):
            load_network(folder / form, "student")


@pytest.mark.parametrize("precision", HALF)
def test_half_files_differ_by_a_known_bound(folder, tmp_path, precision):
    export(str(folder / "run"), str(tmp_path / "half"), precision=precision)
    whole, half = ark.load(folder / "published"), ark.load(tmp_path / "half")
    small, large = (
        (f / "model.safetensors").stat().st_size for f in (tmp_path / "half", folder / "published")
    )
    assert small < 0.6 * large
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    expected, found = whole.predict(images), half.predict(images)
    apart = {
        key: float((found[key].probabilities - expected[key].probabilities).abs().max())
        for key in ("toy/multilabel", "toy/multiclass", "toy/segmentation")
    }
    print(precision, apart)
    assert max(apart.values()) < HALF[precision]


def test_a_missing_package_says_what_to_install(folder, tmp_path):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from ark.__main__ import main\n"
        f"sys.argv = ['ark', 'onnx', {str(folder / 'published')!r}, {str(tmp_path / 'a.onnx')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install ark-foundation[onnx]" in done.stderr


def test_a_published_head_of_ones_own_is_exported_where_it_is_allowed(tmp_path):
    head = {"class_path": "landmarks.LandmarkHead"}
    task = TaskSpec("toy", "points", "points", CLASSES, head)
    network = Network({"name": "test_efficientnet", "image_size": SIDE}, None, [task]).eval()
    folder = publish(tmp_path / "published", network)
    with pytest.raises(ConfigError, match=r"--allow='\[\"landmarks\.LandmarkHead\"\]'"):
        onnx(str(folder), str(tmp_path / "model.onnx"))
    onnx(str(folder), str(tmp_path / "model.onnx"), allow=["landmarks.LandmarkHead"])
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    found = load_network(tmp_path / "model.onnx").predict("toy/points", images)
    torch.testing.assert_close(
        found.points, network(images)["toy/points"].points, rtol=0, atol=1e-3
    )
