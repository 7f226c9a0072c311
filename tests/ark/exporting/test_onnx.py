"""Files of `ark onnx`, run by onnxruntime and compared with torch."""

import copy
import logging

import onnx as onnx_package
import onnxruntime
import pytest
import torch

from ark.checkpoint import save_networks
from ark.errors import ConfigError
from ark.exporting.boxes import choose
from ark.exporting.graph import Graph
from ark.exporting.onnx_file import onnx
from ark.exporting.onnx_network import OnnxNetwork
from ark.network import Network
from ark.types import BoxPrediction, TaskSpec
from heads.segmentation.decoders import DECODERS
from toys import CLASSES, HEADS

SIDE = 64
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters warn of their own future
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
CNN, VIT, SWIN = "test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"


def task(name, kind, **args):
    return TaskSpec("toy", name, kind, CLASSES, {"class_path": HEADS[kind], "init_args": args})


CLASSIFIERS = [
    task("bce", "multilabel"),
    task("asymmetric", "multilabel", loss="asymmetric", classifier="mlp", hidden=16),
    task("cosine", "multilabel", classifier="cosine"),
    task("softmax", "multiclass", dropout=0.5),
    task("softmax_cosine", "multiclass", classifier="cosine"),
    task("coral", "ordinal", loss="coral"),
    task("corn", "ordinal", loss="corn"),
    task("numbers", "values"),
]
MASKS = [
    task("fpn", "segmentation"),
    task("exclusive", "segmentation", mode="multiclass"),
    task("shared_a", "segmentation", decoder="Unet", shared="both"),
    task("shared_b", "segmentation", decoder="Unet", shared="both"),
]


def make_network(tasks, backbone=CNN, projector=None):
    torch.manual_seed(0)
    network = Network({"name": backbone, "image_size": SIDE}, projector, tasks).eval()
    for key, head in network.heads_by_key().items():
        if network.tasks[key].kind == "values":
            head.mean.copy_(torch.tensor([60.0, 0.5, 1.0]))
        if hasattr(head, "temperature"):
            head.temperature.fill_(1.7)
            head.thresholds.copy_(torch.tensor([0.2, 0.5, 0.7]))
    return network


def written(folder, network, **options):
    """The network's file, read again."""
    save_networks(folder / "run" / "model", teacher=network)
    path = folder / "model.onnx"
    onnx(str(folder / "run"), str(path), **options)
    return OnnxNetwork(path)


def images(batch, channels):
    generator = torch.Generator().manual_seed(batch * 10 + channels)
    shape = (batch, channels, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def assert_same(network, other):
    """All predictions, of batches of 1 and 3, gray and RGB."""
    for batch in (1, 3):
        for channels in (1, 3):
            given = images(batch, channels)
            expected, found = network(given), other(given)
            assert list(found) == list(expected)
            for key in found:
                assert type(found[key]) is type(expected[key])
                assert_close(found[key], expected[key])


def assert_close(found, expected):
    if isinstance(expected, BoxPrediction):
        assert_boxes_close(found, expected)
    elif hasattr(expected, "values"):
        torch.testing.assert_close(found.values, expected.values, **CLOSE)
    else:
        torch.testing.assert_close(found.probabilities, expected.probabilities, **CLOSE)


def assert_boxes_close(found, expected):
    """The best ones: of scores that differ by less than rounding, either may suppress the other."""
    for n in range(len(expected.boxes)):
        torch.testing.assert_close(found.scores[n][:3], expected.scores[n][:3], **CLOSE)
        assert abs(len(found.scores[n]) - len(expected.scores[n])) <= 3


@pytest.mark.parametrize("backbone", [CNN, VIT, pytest.param(SWIN, marks=pytest.mark.slow)])
def test_all_classifiers_and_masks_equal_torch(tmp_path, backbone):
    network = make_network(CLASSIFIERS + MASKS, backbone, {"width": 24, "hidden": True})
    other = written(tmp_path, network)
    assert other.said.left_out == {}
    assert_same(network, other)
    assert other.predict("toy/exclusive", images(1, 3)).exclusive
    features = network.features(images(3, 3), "all")
    found = other.tensors(images(3, 3))
    torch.testing.assert_close(found["pooled"], features.pooled.detach(), **CLOSE)
    torch.testing.assert_close(found["embedding"], features.embedding.detach(), **CLOSE)


def test_a_file_stands_alone(tmp_path):
    network = make_network([CLASSIFIERS[0], MASKS[1], CLASSIFIERS[-1]])
    said = written(tmp_path, network).said
    assert said.image_size == SIDE
    assert said.mean == network.backbone.mean.flatten().tolist()
    assert said.std == network.backbone.std.flatten().tolist()
    first, second, third = said.tasks.values()
    assert first["kind"] == "multilabel"
    assert first["classes"] == list(CLASSES)
    assert first["thresholds"] == pytest.approx([0.2, 0.5, 0.7])
    assert second["exclusive"]
    assert third["kind"] == "values"
    file = onnx_package.load(tmp_path / "model.onnx")
    onnx_package.checker.check_model(file, full_check=True)
    assert [i.name for i in file.graph.input] == ["images"]
    outputs = ["pooled", "embedding", "toy/bce", "toy/exclusive", "toy/numbers"]
    assert [o.name for o in file.graph.output] == outputs


def test_a_viewer_shows_how_to_use_it(tmp_path):
    written(tmp_path, make_network([CLASSIFIERS[0], MASKS[1]]))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", "channels", SIDE, SIDE]
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes["toy/bce"] == ["batch", 3]
    assert shapes["toy/exclusive"] == ["batch", 3, SIDE, SIDE]
    assert "(batch, 1 or 3, 64, 64), gray or RGB" in session.get_modelmeta().description


def test_numbers_in_place_of_bytes(tmp_path):
    network = make_network(CLASSIFIERS[:1])
    other = written(tmp_path, network, input="float32")
    assert_same(network, other)
    given = images(2, 3) / 255
    assert_close(other(given)["toy/bce"], network(given)["toy/bce"])


@pytest.mark.parametrize("detector", ["atss", "fcos", "retinanet"])
def test_boxes_of_dense_detectors_equal_torch(tmp_path, detector):
    """The file's boxes and scores of all cells are compared when it is written; the choice among
    torch's own is mmdet's to the last bit."""
    network = make_network([task("boxes", "detection", detector=detector, score_threshold=0.05)])
    head = network.head("toy/boxes")
    sure_of_something(head)
    assert_same(network, written(tmp_path, network))
    with torch.no_grad():
        every = Graph(network, ["toy/boxes"]).named(images(3, 3))
    expected = network(images(3, 3))["toy/boxes"]
    chosen = choose(every["toy/boxes/boxes"], every["toy/boxes/scores"], head.graph_facts())
    for n in range(3):
        assert len(expected.scores[n]) > 3, "nothing would be compared"
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(chosen, name)[n], getattr(expected, name)[n])


def sure_of_something(head):
    """Scores that spread, where those of a new head are all .01; none reaches 1, since of boxes of
    equal scores either may win."""
    layer = head.detector.bbox_head
    layer = getattr(layer, "conv_cls", None) or getattr(layer, "atss_cls", None) or layer.retina_cls
    torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.zeros_(layer.bias)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_equals_torch(tmp_path, decoder):
    network = make_network([task("masks", "segmentation", decoder=decoder)])
    other = written(tmp_path, network)
    assert not other.said.left_out
    assert_same(network, other)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["dino", "deformable_detr"])
def test_transformers_are_left_out(tmp_path, detector):
    network = make_network(
        [
            CLASSIFIERS[0],
            task("boxes", "detection", detector=detector, detector_args={"queries": 20}),
        ]
    )
    other = written(tmp_path, network)
    assert list(other.tasks) == ["toy/bce"]
    assert "chooses proposals within the network" in other.said.left_out["toy/boxes"]


def test_what_cannot_be_exported_is_listed_with_its_reason(tmp_path, caplog):
    two_stage = task("rois", "detection", detector="faster_rcnn")
    guided = task("guided", "segmentation", guide="rois")
    network = make_network([CLASSIFIERS[0], two_stage, guided])
    with caplog.at_level(logging.WARNING, logger="ark"):
        other = written(tmp_path, network)
    assert list(other.tasks) == ["toy/bce"]
    assert "proposals" in other.said.left_out["toy/rois"]
    assert "reads the boxes of 'rois'" in other.said.left_out["toy/guided"]
    assert "toy/rois is LEFT OUT" in caplog.text
    assert "toy/guided is LEFT OUT" in caplog.text
    expected = network(images(3, 3))["toy/bce"]
    assert_close(other(images(3, 3))["toy/bce"], expected)


def test_tasks_are_chosen_and_unknown_ones_refused(tmp_path):
    network = make_network(CLASSIFIERS[:2])
    assert list(written(tmp_path, network, tasks=["toy/bce"]).tasks) == ["toy/bce"]
    with pytest.raises(ConfigError, match=r"'toy/none'.*toy/bce"):
        onnx(str(tmp_path / "run"), str(tmp_path / "other.onnx"), tasks=["toy/none"])


def test_half_precision_differs_little(tmp_path):
    network = make_network([*CLASSIFIERS, MASKS[0]])
    other = written(tmp_path, copy.deepcopy(network), precision="float16")
    given = images(3, 3)
    for key, expected in network(given).items():
        found = other(given)[key]
        if hasattr(expected, "probabilities"):
            assert (found.probabilities - expected.probabilities).abs().max() < 5e-3
        else:
            torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=5e-3)


def test_too_far_from_torch_leaves_no_file(tmp_path):
    network = make_network(CLASSIFIERS[:1])
    with pytest.raises(ConfigError, match=r"differs from torch's by .*--tolerance"):
        written(tmp_path, network, tolerance=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_files_are_refused(tmp_path):
    written(tmp_path, make_network(CLASSIFIERS[:1]))
    whole = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"model\.onnx exists.*--overwrite=true"):
        onnx(str(tmp_path / "run"), str(whole))
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        onnx(str(tmp_path / "run"), str(tmp_path / "model.bin"))
    cut = tmp_path / "cut.onnx"
    content = whole.read_bytes()
    for share in (0.1, 0.5, 0.99):
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConfigError, match=r"cut\.onnx.*write it again"):
            OnnxNetwork(cut)
    foreign = onnx_package.load(whole)
    del foreign.metadata_props[:]
    onnx_package.save(foreign, cut)
    with pytest.raises(ConfigError, match=r"cut\.onnx.*not those of `ark onnx`"):
        OnnxNetwork(cut)
    with pytest.raises(ConfigError, match="no such file"):
        OnnxNetwork(tmp_path / "none.onnx")
