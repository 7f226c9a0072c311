"""Files for other runtimes compute what the network does, stand alone, and say what they lack."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from commands import ark as command
from PIL import Image
from published_models import make_network, pictures, publish

import ark
from ark.deployment import files
from ark.deployment.runtime import OnnxNetwork
from ark.types import ConfigError
from toys import SIZE

KINDS = ("multilabel", "multiclass", "ordinal", "segmentation", "values")


def write(folder: Path, *kinds: str, backbone: str = "test_efficientnet", name: str = "m") -> Path:
    publish(folder / name, make_network(*kinds, backbone=backbone), name=name)
    files.onnx(str(folder / name), str(folder / f"{name}.onnx"))
    return folder / f"{name}.onnx"


@pytest.mark.parametrize(
    "backbone",
    [
        "test_efficientnet",
        "test_vit",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("test_convnext", "test_resnet")),
    ],
)
def test_every_kind_is_as_in_torch(tmp_path: Path, backbone: str) -> None:
    path = write(tmp_path, *KINDS, backbone=backbone)
    model = ark.load(tmp_path / "m")
    network = OnnxNetwork(path)
    for count in (1, 2):
        images = pictures()[:count]
        expected, found = model.predict(images), network(images)
        assert list(found) == [f"toy/{kind}" for kind in KINDS]
        for key, prediction in expected.items():
            for name, value in vars(prediction).items():
                other = getattr(found[key], name)
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
                else:
                    assert value == other
        embedding = model.features(images).embedding.detach()
        torch.testing.assert_close(network.features(images), embedding, rtol=1e-4, atol=1e-4)


def test_a_swin_is_as_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 2}
    from ark.network import Network
    from toys import make_task

    network = Network(
        {"name": "swin_tiny_patch4_window7_224", "image_size": SIZE, "args": args},
        None,
        [make_task("multilabel"), make_task("segmentation")],
    )
    publish(tmp_path / "m", network.eval())
    files.onnx(str(tmp_path / "m"), str(tmp_path / "m.onnx"))
    expected = network(pictures())["toy/segmentation"].probabilities
    found = OnnxNetwork(tmp_path / "m.onnx")(pictures())["toy/segmentation"].probabilities
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "multiclass", "segmentation")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert told["image_size"] == str(SIZE)
    assert told["sha256"] == ark.load(tmp_path / "m").facts.sha256
    assert json.loads(told["tasks"])[0] == {
        "task": "toy/multiclass", "kind": "multiclass", "classes": ["heart", "lung", "rib"],
        "exclusive": True,
    }  # fmt: skip
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == (
        "images", "tensor(uint8)", ["batch", 3, SIZE, SIZE]
    )  # fmt: skip
    assert [o.name for o in session.get_outputs()] == [
        "features", "toy/multiclass", "toy/segmentation"
    ]  # fmt: skip
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_predict_runs_it_like_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, *KINDS)
    (tmp_path / "images").mkdir()
    for number, size in enumerate([(70, 90), (64, 64)]):
        array = pictures()[number, :1].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        Image.fromarray(array).resize(size).save(tmp_path / "images" / f"{number}.png")
    for checkpoint, output in ((tmp_path / "m", "torch"), (path, "onnx")):
        command(
            "predict",
            checkpoint,
            tmp_path / "images",
            f"--output={tmp_path / output}",
            "--workers=0",
        )
    one, other = (pd.read_csv(tmp_path / o / "classes.csv") for o in ("torch", "onnx"))
    pd.testing.assert_frame_equal(one, other, atol=1e-4, rtol=1e-4)
    masks = sorted(p.relative_to(tmp_path / "torch") for p in (tmp_path / "torch").rglob("*.png"))
    assert len(masks) == 6
    for mask in masks:
        pixels = [list(Image.open(tmp_path / o / mask).getdata()) for o in ("torch", "onnx")]
        differ = sum(a != b for a, b in zip(*pixels, strict=True))
        assert differ <= 0.01 * len(pixels[0])


def test_boxes_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        path = write(tmp_path, "detection", "values")
    assert "toy/detection is left out: how many detection outputs" in caplog.text
    assert list(OnnxNetwork(path).tasks) == ["toy/values"]
    with pytest.raises(ConfigError, match="'toy/detection' cannot be exported: how many"):
        files.onnx(str(tmp_path / "m"), str(tmp_path / "n.onnx"), tasks=["toy/detection"])
    with pytest.raises(ConfigError, match="'toy/none' cannot be exported: no task of this model"):
        files.onnx(str(tmp_path / "m"), str(tmp_path / "n.onnx"), tasks=["toy/none"])


def test_a_file_that_computes_something_else_is_removed(tmp_path: Path, monkeypatch) -> None:
    publish(tmp_path / "m", make_network("values"))
    usual: Callable[[Path], files.Run] = files._onnx_run
    monkeypatch.setattr(
        files, "_onnx_run", lambda path: lambda x: [o + 0.01 for o in usual(path)(x)]
    )
    with pytest.raises(ConfigError, match=r"differs from torch by .*the file was removed"):
        files.onnx(str(tmp_path / "m"), str(tmp_path / "m.onnx"))
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


@pytest.mark.parametrize("how", ["junk", "cut", "foreign"])
def test_another_file_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.onnx"
    if how == "junk":
        path.write_bytes(b"junk")
    elif how == "cut":
        data = write(tmp_path, "values").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    else:
        node = onnx.helper.make_node("Identity", ["a"], ["b"])
        a, b = (onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "ab")
        graph = onnx.helper.make_graph([node], "g", [a], [b])
        content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
        onnx.save(onnx.helper.make_model(graph, ir_version=9) if content is None else content, path)
    with pytest.raises(ConfigError, match=r"x.onnx: no file that `ark onnx` wrote, or damaged"):
        OnnxNetwork(path)


def test_names_and_files_in_the_way_are_said(tmp_path: Path) -> None:
    publish(tmp_path / "m", make_network("values"))
    with pytest.raises(ConfigError, match=r"expected a file that ends with .onnx"):
        files.onnx(str(tmp_path / "m"), str(tmp_path / "m.pt"))
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ConfigError, match="--overwrite=true"):
        files.onnx(str(tmp_path / "m"), str(tmp_path / "m.onnx"))


def test_torch_runs_its_own_program(tmp_path: Path) -> None:
    network = make_network("multilabel", "segmentation")
    publish(tmp_path / "m", network)
    files.compile(str(tmp_path / "m"), str(tmp_path / "m.pt2"))
    program = torch.export.load(tmp_path / "m.pt2").module()
    found = program(pictures()[:1])[1]
    torch.testing.assert_close(found, network(pictures()[:1])["toy/multilabel"].probabilities)


@pytest.mark.slow
def test_machine_code_computes_the_same(tmp_path: Path) -> None:
    network = make_network("multilabel", "segmentation")
    publish(tmp_path / "m", network)
    files.compile(str(tmp_path / "m"), str(tmp_path / "m.pt2"), how="inductor")
    found = torch._inductor.aoti_load_package(str(tmp_path / "m.pt2"))(pictures()[:1])[2]
    expected = network(pictures()[:1])["toy/segmentation"].probabilities
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
