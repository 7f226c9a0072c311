"""Detectors of mmdet's own configurations: they do with us what they do with mmdet."""

import copy
import json

import pytest
import torch
from torch import nn

from ark.network import Network
from ark.types import ConfigError, DetectionTarget, FeatureInfo, Features, TaskSpec
from heads.detection import DetectionHead
from heads.detection.mmdet_adapter import mmdet_models

pytestmark = pytest.mark.filterwarnings("ignore:.*num_anchors", "ignore:torch.meshgrid")
SIZE = 128
INFO = FeatureInfo((8, 8, 16, 24), (4, 8, 16, 32), pooled=24, embedding=24, image_size=SIZE)
TASK = TaskSpec("toy", "boxes", "detection", ("square", "disc", "ring"))
TARGET = DetectionTarget(
    [torch.tensor([[8.0, 8, 24, 24], [30, 20, 90, 80]]), torch.tensor([[40.0, 40, 74, 94]])],
    [torch.tensor([0, 1]), torch.tensor([2])],
)
EMPTY = DetectionTarget([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
FCOS = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
NORMED_FCOS = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
SHIPPED = {
    "retinanet": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "fcos": FCOS,
    "fcos whose output depends on the mode": NORMED_FCOS,
    "faster_rcnn": "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "cascade_rcnn": "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "dino": "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    "deformable_detr": "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "two-stage deformable_detr": (
        "mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py"
    ),
    "conditional_detr": "mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "gfl": "mmdet::gfl/gfl_r50_fpn_1x_coco.py",
    "yolof": "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py",
}
CLASSES = len(TASK.classes)


def shipped(name: str) -> dict:
    """The file's `model`, small, as a user would write it into YAML."""
    mmdet_models()
    from heads.detection.files import load_config

    model = load_config(SHIPPED[name], [], "test")
    _shrink(model)
    for coder in ("encoder", "decoder"):
        if coder in model:
            model[coder]["num_layers"] = 1 + (coder == "decoder")
    if "num_queries" in model:
        model["num_queries"] = 20
        model["test_cfg"] = {"max_per_img": 20}
    return model


SMALLER = {
    "feedforward_channels": 32,
    "fc_out_channels": 32,
    "stacked_convs": 1,
    "max_per_img": 30,
    "num": 32,
}


def _shrink(node: object) -> None:
    for value in node if isinstance(node, list) else node.values():
        if isinstance(value, dict | list):
            _shrink(value)
    if isinstance(node, dict):
        node.update({key: value for key, value in SMALLER.items() if key in node})


def random_features(seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(2, c, SIZE // s, SIZE // s, generator=generator).requires_grad_()
        for c, s in zip(INFO.channels, INFO.strides, strict=True)
    ]
    return Features(maps, None, None, (SIZE, SIZE))


def mmdets_own(model: dict, channels: list[int] | int):
    """The whole detector as mmdet builds it, on feature maps in place of images."""
    from mmengine import ConfigDict

    model = ConfigDict(copy.deepcopy(model))
    del model["data_preprocessor"]
    model.backbone = {"type": nn.Identity}
    model.neck.in_channels = channels
    if "roi_head" in model:
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.num_classes = CLASSES
    else:
        model.bbox_head.num_classes = CLASSES
    return mmdet_models().build(model)


def samples(target: DetectionTarget) -> list:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    found = []
    for boxes, labels in zip(target.boxes, target.labels, strict=True):
        shape = (SIZE, SIZE)
        meta = {"img_shape": shape, "batch_input_shape": shape, "pad_shape": shape}
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=boxes.clone(), labels=labels.clone())
        found.append(sample)
    return found


def total(terms: dict) -> dict[str, torch.Tensor]:
    """mmengine's BaseModel.parse_losses: lists are summed, other numbers are no losses."""
    return {
        name: sum(t.sum() for t in (term if isinstance(term, list) else [term]))
        for name, term in terms.items()
        if "loss" in name
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_mmdets_own_detector_gives_the_same_losses_and_boxes(name):
    torch.manual_seed(0)
    model = shipped(name)
    head = DetectionHead(TASK, INFO, detector=model)
    widths = [INFO.channels[level] for level in head.levels]
    theirs = mmdets_own(model, widths[0] if name == "yolof" else widths)
    state = head.detector.state_dict()
    state |= {f"neck.{name}": value for name, value in head.neck.state_dict().items()}
    theirs.load_state_dict(state)
    for target in (TARGET, EMPTY):
        features = random_features()
        maps = tuple(features.maps[level] for level in head.levels)
        torch.manual_seed(5)  # denoising, dropout, sampled proposals
        expected = total(theirs.train().loss(maps, samples(target)))
        torch.manual_seed(5)
        terms = head.train().loss(head(features, target), target)
        assert set(terms) == set(expected)
        torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-6)
        sum(terms.values()).backward()
        assert features.maps[-1].grad.any()
    with torch.no_grad():
        expected = theirs.eval().predict(maps, samples(EMPTY), rescale=False)
    found = head.eval().predict_features(features)
    for n, sample in enumerate(expected):
        order = sample.pred_instances.scores.argsort(descending=True, stable=True)
        boxes = sample.pred_instances[order]
        torch.testing.assert_close(found.boxes[n], boxes.bboxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.scores[n], boxes.scores, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.labels[n], boxes.labels)


def test_a_file_is_a_mapping_with_another_backbone(tmp_path):
    model = shipped("retinanet")
    before = copy.deepcopy(model)
    path = tmp_path / "mine.py"
    path.write_text(f"model = {model!r}\ntrain_cfg = dict(max_epochs=12)\n")
    heads = [DetectionHead(TASK, INFO, detector=d) for d in (str(path), model, {"model": model})]
    assert model == before
    assert len({str(head) for head in heads}) == 1
    assert heads[0].detector.bbox_head.num_classes == CLASSES
    assert heads[0].levels == [0, 1, 2, 3]
    assert not list(heads[0].detector.backbone.parameters())


def test_numbers_given_change_the_configuration():
    head = DetectionHead(TASK, INFO, shipped("faster_rcnn"), max_boxes=7, nms_iou=0.2)
    assert head.detector.test_cfg.rcnn.max_per_img == 7
    assert head.detector.roi_head.test_cfg.nms.iou_threshold == 0.2
    assert head.detector.test_cfg.rpn.nms.iou_threshold == 0.7
    few = {"width": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 1, "queries": 20}
    dino = DetectionHead(TASK, INFO, "dino", few)
    assert dino.detector.test_cfg.max_per_img == 20 * CLASSES  # there are no 300


def test_the_presets_numbers_are_foundation_xs():
    info = FeatureInfo((8, 16, 16, 24), (4, 8, 16, 32), 24, 24, image_size=224)
    head = DetectionHead(TASK, info, "dino", {"ffn": 2048})
    detector = head.detector
    attention = detector.encoder.layers[0].self_attn
    assert (detector.num_queries, detector.embed_dims) == (900, 256)
    assert (len(detector.encoder.layers), len(detector.decoder.layers)) == (6, 6)
    assert (attention.num_heads, attention.num_levels, attention.num_points) == (8, 4, 4)
    assert detector.positional_encoding.temperature == 20
    assert detector.encoder.layers[0].ffn.feedforward_channels == 2048
    assert not [m for m in detector.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    noise = detector.dn_query_generator
    assert (noise.num_dn_queries, noise.label_noise_scale, noise.box_noise_scale) == (100, 0.5, 1.0)
    assert detector.test_cfg.max_per_img == 300
    costs = [cost.weight for cost in detector.bbox_head.assigner.match_costs]
    losses = detector.bbox_head
    weights = [loss.loss_weight for loss in (losses.loss_cls, losses.loss_bbox, losses.loss_iou)]
    assert (costs, weights) == ([2.0, 5.0, 2.0], [1.0, 5.0, 2.0])


def test_a_neck_and_a_head_of_ones_own():
    neck = {"type": "FPN", "out_channels": 16, "num_outs": 3}
    anchors = {"type": "AnchorGenerator", "ratios": [1.0], "strides": [8, 16, 32]}
    anchors |= {"octave_base_scale": 4, "scales_per_octave": 1}
    dense = {"type": "RetinaHead", "in_channels": 16, "feat_channels": 16, "stacked_convs": 1}
    dense |= {"anchor_generator": anchors, "train_cfg": shipped("retinanet")["train_cfg"]}
    config = {"neck": neck, "bbox_head": dense}
    before = copy.deepcopy(config)
    head = DetectionHead(TASK, INFO, detector=config)
    assert config == before
    assert head.levels == [1, 2, 3]
    terms = head.loss(head(random_features(), TARGET), TARGET)
    assert set(terms) == {"loss_cls", "loss_bbox"}
    assert all(term.isfinite() for term in terms.values())


def changed(name: str, **changes) -> dict:
    return shipped(name) | changes


def anchors_of_other_strides() -> dict:
    model = shipped("retinanet")
    model["bbox_head"]["anchor_generator"]["strides"] = [4, 8, 16, 32, 64]
    return model


ERRORS = {
    "unknown preset": ({"detector": "yolo"}, r"'yolo'; expected one of \['atss', 'deformable_de"),
    "no such file": ({"detector": "my/yolo.py"}, r"there is no file my/yolo\.py"),
    "not shipped": ({"detector": "mmdet::dino/none.py"}, r"there is no file .*dino/none\.py"),
    "outside of what is shipped": (
        {"detector": "mmdet::../../../../x.py"},
        r"unknown detector 'mmdet::\.\./",
    ),
    "wrong keys": (
        {"detector": {"neck": {}}},
        r"with a 'type', or has exactly the keys 'neck' and 'bbox_head', but.*\['neck'\]",
    ),
    "unknown detector": (
        {"detector": lambda: changed("retinanet", type="RetinaNett")},
        r"mmdet 3\.3\.0 cannot build 'RetinaNett'.*it knows \['ATSS', .*'RetinaNet'",
    ),
    "unknown neck": (
        {"detector": {"neck": {"type": "Nock"}, "bbox_head": {"type": "ATSSHead"}}},
        r"detector\.neck: mmdet 3\.3\.0 cannot build 'Nock'.*it knows \[.*'FPN'",
    ),
    "mmdet 2": (
        {"detector": lambda: changed("retinanet", pretrained="torchvision://resnet50")},
        r"cannot build 'RetinaNet'.*pretrained.*another version of mmdet",
    ),
    "masks": (
        {"detector": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"},
        "'MaskRCNN' learns masks.*FasterRCNN",
    ),
    "other strides": (
        {"detector": anchors_of_other_strides},
        r"anchors have strides \[4, 8, 16, 32, 64\].*maps of \[16, 8, 4, 2, 1\] cells",
    ),
    "more maps than there are": (
        {"detector": lambda: changed("retinanet", neck={"type": "FPN", "in_channels": [8] * 5})},
        r"neck reads 5 maps, but the backbone has 4",
    ),
    "numbers for presets": (
        {"detector": lambda: shipped("retinanet"), "detector_args": {"channels": 8}},
        r"detector_args is for the presets",
    ),
    "levels for presets": (
        {"detector": lambda: shipped("retinanet"), "extra_levels": 2},
        r"extra_levels is for the presets",
    ),
    "unknown number": (
        {"detector_args": {"chanels": 8}},
        r"'atss' has no argument 'chanels'; detector_args accepts \['channels', 'convs'\]",
    ),
    "channels": ({"detector_args": {"channels": 60}}, "is 60; expected a multiple of 8"),
    "width": ({"detector": "dino", "detector_args": {"width": 36}}, "expected a multiple of 8"),
    "no number": (
        {"detector": "dino", "detector_args": {"queries": "many"}},
        "detector_args.queries is 'many'; expected a whole number >= 1",
    ),
    "no layers": (
        {"detector": "dino", "detector_args": {"decoder_layers": 0}},
        "detector_args.decoder_layers is 0; expected a whole number >= 1",
    ),
    "no noise": (
        {"detector": "dino", "detector_args": {"box_noise": 0}},
        "detector_args.box_noise is 0; expected a number > 0",
    ),
    "no switch": (
        {"detector": "deformable_detr", "detector_args": {"refine": "yes"}},
        "detector_args.refine is 'yes'; expected true or false",
    ),
    "heads": (
        {"detector": "dino", "detector_args": {"width": 32, "heads": 5}},
        "embed_dims must be divisible by num_heads",
    ),
    "more queries than places": (
        {"detector": "dino", "detector_args": {"encoder_layers": 1, "queries": 900}},
        r"queries is 900, but an image of 128 pixels has only 340 places",
    ),
    "convs": ({"detector_args": {"convs": -1}}, "convs is -1; expected a whole number >= 0"),
    "no coarse map": ({"min_stride": 64}, r"min_stride=64; its strides are \[4, 8, 16, 32\]"),
    "max_boxes": ({"max_boxes": 0}, "max_boxes is 0; expected a number >= 1"),
    "extra_levels": ({"extra_levels": -1}, "extra_levels is -1; expected a number >= 0"),
    "nms_iou": ({"nms_iou": 1.5}, "nms_iou is 1.5; expected a number in"),
    "nms_iou without nms": (
        {"detector": "deformable_detr", "detector_args": {"encoder_layers": 1}, "nms_iou": 0.5},
        "nms_iou is 0.5, but this detector has no non-maximum suppression",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_fix(name):
    arguments, message = ERRORS[name]
    detector = arguments.get("detector", "atss")
    arguments = arguments | {"detector": detector() if callable(detector) else detector}
    with pytest.raises(ConfigError, match=message) as caught:
        DetectionHead(TASK, INFO, **arguments)
    assert "head of task 'toy/boxes'" in str(caught.value)


def test_a_detector_of_a_file_travels_without_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"model = {shipped('fcos')!r}\n")
    init_args = {"detector": str(path), "max_boxes": 7}
    config = {"class_path": "heads.detection.DetectionHead", "init_args": init_args}
    task = TaskSpec("d", "boxes", "detection", ("a", "b"), config)
    network = Network({"name": "test_resnet", "image_size": 64}, None, [task])
    path.unlink()
    plain = json.loads(json.dumps(network.architecture))
    again = Network.from_architecture(plain)
    again.load_state_dict(network.state_dict())
    assert again.architecture == plain
    assert again.tasks[task.key].head["init_args"]["max_boxes"] == 7
