import copy
from itertools import pairwise

import matplotlib
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from ark.types import (
    BoxPrediction,
    ConfigError,
    DetectionTarget,
    FeatureInfo,
    Features,
    TaskSpec,
)
from heads.detection import DetectionHead

# Python's warning filters that the adapter sets do not outlive pytest's first test
pytestmark = pytest.mark.filterwarnings("ignore:.*num_anchors", "ignore:torch.meshgrid")
PRESETS = ("fcos", "retinanet", "atss")
SIZE = 96
INFO = FeatureInfo((4, 8, 16, 24), (4, 8, 16, 32), pooled=24, embedding=24, image_size=SIZE)
TASK = TaskSpec("toy", "boxes", "detection", ("square", "disc"))


def random_features(batch: int = 2, info: FeatureInfo = INFO, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    side = info.image_size
    maps = [
        torch.randn(batch, c, side // s, side // s, generator=generator).requires_grad_()
        for c, s in zip(info.channels, info.strides, strict=True)
    ]
    return Features(maps, None, None, (side, side))


def truth(*images: list[tuple[float, float, float, float, int]]) -> DetectionTarget:
    rows = [torch.tensor(image, dtype=torch.float32).view(-1, 5) for image in images]
    return DetectionTarget([r[:, :4] for r in rows], [r[:, 4].long() for r in rows])


def found(*images: list[tuple[float, float, float, float, float, int]]) -> BoxPrediction:
    rows = [torch.tensor(image, dtype=torch.float32).view(-1, 6) for image in images]
    return BoxPrediction(
        [r[:, :4] for r in rows], [r[:, 4] for r in rows], [r[:, 5].long() for r in rows]
    )


TARGETS = {
    "boxes": truth([(8, 8, 24, 24, 0), (30, 20, 90, 80, 1)], [(40, 40, 54, 54, 1)]),
    "one image empty": truth([(8, 8, 24, 24, 0)], []),
    "all empty": truth([], []),
    "degenerate": truth([(8, 8, 8, 24, 0)], [(90, 90, 80, 95, 1)]),
    "whole image": truth([(0, 0, SIZE, SIZE, 0)], [(0, 0, 1, 1, 1)]),
}


@pytest.fixture(scope="module", params=PRESETS)
def head(request):
    torch.manual_seed(0)
    return DetectionHead(TASK, INFO, detector=request.param, channels=16, convs=1)


@pytest.mark.parametrize("name", TARGETS)
def test_loss_is_finite_and_reaches_every_map_read(head, name):
    features = random_features()
    terms = head.loss(head(features), TARGETS[name])
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    head.zero_grad()
    sum(terms.values()).backward()
    finest, *read = features.maps
    assert finest.grad is None  # stride 4
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in read)
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


def test_a_box_outside_the_image_teaches_what_no_box_teaches(head):
    output = head(random_features())
    outside = head.loss(output, truth([(500, 500, 540, 540, 0)], []))
    torch.testing.assert_close(outside, head.loss(output, TARGETS["all empty"]))


def test_every_parameter_learns_from_boxes_on_every_level(head):
    sizes = (16, 30, 60, 94)
    boxes = truth(*([(1, 1, 1 + size, 1 + size, 0)] for size in sizes))
    head.zero_grad()
    sum(head.loss(head(random_features(len(sizes))), boxes).values()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_first_loss_is_that_of_a_rare_class(head):
    terms = head.loss(head(random_features()), TARGETS["boxes"])
    assert terms["loss_cls"] < 2
    assert sum(terms.values()) < 5


def test_loss_and_prediction_do_not_depend_on_the_mode(head):
    """A locked head is in eval mode while its loss still teaches the backbone."""
    features = random_features()
    training = head.train()(features)
    evaluating = head.eval()(features)
    for one, other in zip(training.raw, evaluating.raw, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    head.train()


def test_no_batch_statistics(head):
    assert not [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]


@pytest.mark.parametrize("preset", PRESETS)
def test_prediction_is_sorted_inside_the_image_and_bounded(preset):
    torch.manual_seed(0)
    head = DetectionHead(
        TASK, INFO, preset, channels=16, convs=1, max_boxes=10, score_threshold=0.0, nms_iou=0.3
    )
    features = random_features()
    features.maps = [10 * m for m in features.maps]
    prediction = head.predict_features(features)
    assert len(prediction.boxes) == len(prediction.scores) == len(prediction.labels) == 2
    for boxes, scores, labels in zip(
        prediction.boxes, prediction.scores, prediction.labels, strict=True
    ):
        assert boxes.shape == (10, 4)
        same_class = labels[:, None] == labels
        assert (box_iou(boxes, boxes) * same_class).fill_diagonal_(0).max() <= 0.3
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= {0, 1}
        assert boxes.min() >= 0
        assert boxes.max() <= SIZE
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()
        assert 0 <= scores.min() <= scores.max() <= 1
        assert not boxes.requires_grad


def test_no_prediction_above_the_threshold_is_an_empty_one(head):
    prediction = head.predict_features(random_features())  # scores start at 0.01
    assert [b.shape for b in prediction.boxes] == [(0, 4), (0, 4)]
    assert [s.shape for s in prediction.scores] == [(0,), (0,)]


def test_state_dict_round_trip_predicts_the_same(head):
    twin = copy.deepcopy(head)
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    twin.load_state_dict(head.state_dict())
    for this, that in zip(head(random_features()).raw, twin(random_features()).raw, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(this, that, strict=True))


def test_consistency_names_shapes_and_gradient(head):
    features = random_features()
    parts = head.consistency(features, head(features))
    assert list(parts) == ["backbone", "decoder"]
    assert parts["backbone"] is features.maps[-1]
    cells = sum((SIZE // stride) ** 2 for stride in (8, 16, 32)) + 2 * 2  # 3 cells halved
    assert parts["decoder"].shape == (2, 16, cells)
    grads = torch.autograd.grad(parts["decoder"].square().mean(), list(head.neck.parameters()))
    assert all(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("strides", [(16,), (4, 8, 16, 32), (8, 32), (14, 28)])
def test_other_pyramids(strides):
    info = FeatureInfo((8,) * len(strides), strides, 8, 8, image_size=112)
    head = DetectionHead(TASK, info, channels=16, convs=1, extra_levels=2)
    features = random_features(info=info)
    output = head(features)
    expected = [s for s in strides if s >= 8] + [2 * strides[-1], 4 * strides[-1]]
    assert [s for s, _ in head.dense.prior_generator.strides] == expected
    assert len(output.maps) == len(expected)
    assert all(v.isfinite() for v in head.loss(output, TARGETS["boxes"]).values())


def test_a_detector_of_ones_own():
    neck = {"type": "FPN", "out_channels": 16, "num_outs": 3}
    anchors = {"type": "AnchorGenerator", "ratios": [1.0], "strides": [8, 16, 32]}
    anchors |= {"octave_base_scale": 4, "scales_per_octave": 1}
    from heads.detector_presets import retinanet

    dense = retinanet(16, 1, [8, 16, 32]) | {"anchor_generator": anchors}
    dense["train_cfg"]["assigner"]["min_pos_iou"] = 0  # mmdet's default: any box claims an anchor
    config = {"neck": neck, "bbox_head": dense}
    before = copy.deepcopy(config)
    head = DetectionHead(TASK, INFO, detector=config)
    assert config == before
    for name in ("boxes", "degenerate"):
        terms = head.loss(head(random_features()), TARGETS[name])
        assert set(terms) == {"loss_cls", "loss_bbox"}
        assert all(term.isfinite() for term in terms.values())


ERRORS = {
    "unknown preset": ({"detector": "yolo"}, r"'yolo'; expected one of \['atss', 'fcos', 'ret"),
    "wrong keys": ({"detector": {"neck": {}}}, r"'neck' and 'bbox_head'.*has \['neck'\]"),
    "output that depends on the mode": (
        {"detector": {"neck": {}, "bbox_head": {"type": "FCOSHead", "norm_on_bbox": True}}},
        "norm_on_bbox is true; expected false",
    ),
    "unknown type": (
        {"detector": {"neck": {"type": "Nock"}, "bbox_head": {"type": "ATSSHead"}}},
        "detector.neck: mmdet cannot build 'Nock'",
    ),
    "channels": ({"channels": 60}, "channels is 60; expected a multiple of 8"),
    "no coarse map": ({"min_stride": 64}, r"min_stride=64; its strides are \[4, 8, 16, 32\]"),
    "max_boxes": ({"max_boxes": 0}, "max_boxes is 0; expected a number >= 1"),
    "convs": ({"convs": -1}, "convs is -1; expected a number >= 0"),
    "extra_levels": ({"extra_levels": -1}, "extra_levels is -1; expected a number >= 0"),
    "nms_iou": ({"nms_iou": 1.5}, "nms_iou is 1.5; expected a number in"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_fix(name):
    arguments, message = ERRORS[name]
    with pytest.raises(ConfigError, match=message):
        DetectionHead(TASK, INFO, **arguments)


def test_draw_shows_all_truth_and_confident_predictions(head):
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    shown = found([(8, 8, 24, 24, 0.9, 0), (30, 30, 50, 50, 0.2, 1)])
    axes = Figure().add_subplot()
    head.draw(axes, image, shown, 0, truth=False)
    assert [text.get_text() for text in axes.texts] == ["square 0.90"]
    axes = Figure().add_subplot()
    head.draw(axes, image, TARGETS["boxes"], 0, truth=True)
    assert [text.get_text() for text in axes.texts] == ["square", "disc"]
    assert axes.patches[0].get_bbox().bounds == (8, 8, 16, 16)


class TinyBackbone(nn.Module):
    """Four strided convolutions: maps of strides 4, 8 and 16."""

    info = FeatureInfo((16, 32, 32), (4, 8, 16), 32, 32, SIZE)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 16, 32, 32)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.ReLU())
            for i, o in pairwise(widths)
        )

    def forward(self, images: torch.Tensor) -> Features:
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return Features(maps[1:], None, None, (SIZE, SIZE))


def squares() -> tuple[torch.Tensor, DetectionTarget]:
    """Four noisy images, each with a bright small and a dark large square."""
    generator = torch.Generator().manual_seed(3)
    images = 0.1 * torch.randn(4, 3, SIZE, SIZE, generator=generator)
    boxes = []
    for n, (x, y) in enumerate([(4, 6), (70, 8), (10, 74), (72, 70)]):
        u, v = (SIZE - 44 if x < 40 else 4), (SIZE - 46 if y < 40 else 6)
        images[n, :, y : y + 14, x : x + 14] += 1
        images[n, :, v : v + 40, u : u + 40] -= 1
        boxes.append([(x, y, x + 14, y + 14, 0), (u, v, u + 40, v + 40, 1)])
    return images, truth(*boxes)


@pytest.mark.parametrize("preset", PRESETS)
def test_learns_a_handful_of_images(preset):
    torch.manual_seed(0)
    backbone = TinyBackbone()
    head = DetectionHead(TASK, backbone.info, detector=preset, channels=32, convs=1)
    images, target = squares()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        sum(head.loss(head(backbone(images)), target).values()).backward()
        optimizer.step()
    metric = head.metrics()
    metric.update(head.predict_features(backbone(images)), target)
    assert metric.compute()[head.main_metric] > 0.8
