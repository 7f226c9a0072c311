import copy
from itertools import pairwise

import matplotlib
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.ops import box_iou

from ark.types import (
    BoxPrediction,
    DetectionTarget,
    FeatureInfo,
    Features,
    TaskSpec,
)
from heads.detection import DetectionHead

# Python's warning filters that the adapter sets do not outlive pytest's first test
pytestmark = pytest.mark.filterwarnings("ignore:.*num_anchors", "ignore:torch.meshgrid")
SMALL_DETR = {
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn": 64,
    "queries": 20,
}
ARGS = {
    "atss": {"channels": 16, "convs": 1},
    "fcos": {"channels": 16, "convs": 1},
    "retinanet": {"channels": 16, "convs": 1},
    "faster_rcnn": {"channels": 16, "fc_channels": 32, "proposals": 30, "samples": 32},
    "dino": {**SMALL_DETR, "denoising": 10},
    "deformable_detr": SMALL_DETR,
    "deformable_detr, plain": {**SMALL_DETR, "refine": False, "two_stage": False},
}
TRANSFORMERS = ("dino", "deformable_detr", "deformable_detr, plain")
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


def make_head(name: str, info: FeatureInfo = INFO, **init_args) -> DetectionHead:
    torch.manual_seed(0)
    preset = name.split(",")[0]
    return DetectionHead(TASK, info, preset, **{"detector_args": ARGS[name], **init_args})


def losses(head: DetectionHead, target: DetectionTarget, features: Features | None = None) -> dict:
    features = features or random_features(len(target.boxes))
    return head.loss(head(features, target), target)


@pytest.fixture(scope="module", params=ARGS)
def head(request):
    return make_head(request.param)


@pytest.mark.parametrize("name", TARGETS)
def test_loss_is_finite_and_reaches_every_map_read(head, name):
    features = random_features()
    terms = losses(head, TARGETS[name], features)
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
    def loss(target):
        torch.manual_seed(3)  # two-stage detectors sample
        return losses(head, target)

    outside = loss(truth([(500, 500, 540, 540, 0)], []))
    torch.testing.assert_close(outside, loss(TARGETS["all empty"]))


def test_every_parameter_learns_from_boxes_on_every_level(head):
    sizes = (16, 30, 60, 94)
    boxes = truth(*([(1, 1, 1 + size, 1 + size, 0)] for size in sizes))
    head.zero_grad()
    sum(losses(head, boxes).values()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_first_loss_is_that_of_a_rare_class(head):
    terms = losses(head, TARGETS["boxes"])
    assert terms["loss_cls"] < 3


def test_a_locked_head_gives_the_same_loss(head):
    """It is in eval mode while its loss still teaches the backbone."""
    torch.manual_seed(3)
    training = losses(head.train(), TARGETS["boxes"])
    modes = [m.training for m in head.eval().modules()]
    torch.manual_seed(3)
    torch.testing.assert_close(losses(head, TARGETS["boxes"]), training, rtol=0, atol=0)
    assert [m.training for m in head.modules()] == modes
    head.train()


def test_the_prediction_does_not_depend_on_the_mode(head):
    features = random_features()
    training, evaluating = (
        head.train().predict_features(features),
        head.eval().predict_features(features),
    )
    head.train()
    for one, other in zip(training.boxes, evaluating.boxes, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["dino", "faster_rcnn"])
def test_losses_need_a_forward_pass_that_knew_the_target(name):
    head = make_head(name)
    output = head(random_features())
    with pytest.raises(RuntimeError, match="forward made without its target"):
        head.loss(output, TARGETS["boxes"])


@pytest.mark.parametrize("name", ["atss", "dino", "deformable_detr, plain"])
def test_boxes_can_be_had_of_a_training_step(name):
    """Noisy queries do not count; two-stage detectors sample other regions to learn from."""
    head, features = make_head(name, score_threshold=0.0), random_features()
    found = head.predict(head(features, TARGETS["boxes"]))
    expected = head.predict_features(features)
    for one, other in zip(found.boxes, expected.boxes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ARGS)
def test_half_precision_gives_losses_and_whole_precision_boxes(name):
    head, features = make_head(name), random_features()
    with torch.autocast("cpu", torch.bfloat16):
        terms = losses(head, TARGETS["boxes"], features)
        prediction = head.predict_features(features)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(m.grad.isfinite().all() for m in features.maps[1:])
    assert {b.dtype for b in [*prediction.boxes, *prediction.scores]} == {torch.float32}


def test_no_batch_statistics(head):
    assert not [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]


@pytest.mark.parametrize("name", ARGS)
def test_prediction_is_sorted_inside_the_image_and_bounded(name):
    nms = {} if name in TRANSFORMERS else {"nms_iou": 0.3}
    head = make_head(name, max_boxes=10, score_threshold=0.0, **nms)
    features = random_features()
    features.maps = [10 * m for m in features.maps]
    prediction = head.predict_features(features)
    assert len(prediction.boxes) == len(prediction.scores) == len(prediction.labels) == 2
    for boxes, scores, labels in zip(
        prediction.boxes, prediction.scores, prediction.labels, strict=True
    ):
        assert boxes.shape == (10, 4)
        if nms:
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


@pytest.mark.parametrize("name", ARGS)
def test_no_prediction_above_the_threshold_is_an_empty_one(name):
    prediction = make_head(name, score_threshold=0.999).predict_features(random_features())
    assert [b.shape for b in prediction.boxes] == [(0, 4), (0, 4)]
    assert [s.shape for s in prediction.scores] == [(0,), (0,)]


def test_state_dict_round_trip_predicts_the_same(head):
    twin = copy.deepcopy(head)
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    twin.load_state_dict(head.state_dict())
    this, that = (h.predict_features(random_features()) for h in (head, twin))
    assert all(torch.equal(a, b) for a, b in zip(this.boxes, that.boxes, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(this.scores, that.scores, strict=True))


def test_every_tensor_is_saved_once(head, tmp_path):
    """safetensors refuses tied tensors, and an average would move them twice."""
    state = head.state_dict()
    save_file(state, tmp_path / "head.safetensors")
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    saved = {value.data_ptr() for value in state.values()}
    assert {p.data_ptr() for p in head.parameters()} <= saved
    head.load_state_dict(load_file(tmp_path / "head.safetensors"))


def test_a_softmax_over_classes_and_background_is_compared_as_one():
    from heads.detection.presets import retinanet

    config = retinanet((8, 16, 32, 64), channels=16, convs=1)
    config["neck"]["in_channels"] = [8, 16, 24]
    config["bbox_head"]["loss_cls"] = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    head, features = DetectionHead(TASK, INFO, config), random_features()
    logits = head.consistency(features, head(features), ["logits"])["logits"]
    assert head.exclusive
    assert logits.shape[:2] == (2, len(TASK.classes) + 1)


def test_tied_layers_stay_tied():
    head = make_head("deformable_detr, plain")
    branches = head.detector.bbox_head.cls_branches
    assert branches[0] is branches[1]
    assert not [name for name in head.state_dict() if "cls_branches.1" in name]
    with pytest.raises(RuntimeError, match=r"Missing key.*cls_branches\.0\.weight"):
        head.load_state_dict(
            {k: v for k, v in head.state_dict().items() if "cls_branches.0.weight" not in k}
        )


@pytest.mark.parametrize("name", [name for name in ARGS if name not in TRANSFORMERS])
def test_consistency_names_shapes_and_gradient(name):
    head, features = make_head(name), random_features()
    parts = head.consistency(features, head(features))
    assert list(parts) == ["backbone", "decoder"]
    assert parts["backbone"] is features.maps[-1]
    cells = sum((SIZE // stride) ** 2 for stride in (8, 16, 32)) + 2 * 2  # 3 cells halved
    assert parts["decoder"].shape == (2, 16, cells)
    grads = torch.autograd.grad(parts["decoder"].square().mean(), list(head.neck.parameters()))
    assert all(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("name", ARGS)
def test_logits_to_compare_are_those_of_the_classes(name):
    """Classes in axis 1; a transformer's best box scores as its highest logit says."""
    head, features = make_head(name, score_threshold=0.0, max_boxes=300).eval(), random_features()
    output = head(features)
    if name.startswith("faster_rcnn"):
        assert list(head.comparable()) == ["backbone", "pyramid", "decoder"]
        return
    logits = head.consistency(features, output, ["logits"])["logits"]
    assert logits.shape[:2] == (2, len(head.task.classes))
    assert not head.exclusive
    if name in TRANSFORMERS:
        best = logits[:, :, -1].flatten(1).max(dim=1).values.sigmoid()
        found = torch.stack([scores[0] for scores in head.predict(output).scores])
        torch.testing.assert_close(best, found)
    else:
        anchors, classes = head.detector.bbox_head.num_base_priors, len(head.task.classes)
        last = output.raw[0][-1]  # (B, A * C, h, w), of each anchor all classes
        for anchor in range(anchors):
            cells = last[:, anchor * classes : (anchor + 1) * classes].flatten(2)
            place = logits.shape[2] - (anchors - anchor) * cells.shape[2]
            torch.testing.assert_close(logits[:, :, place : place + cells.shape[2]], cells)


@pytest.mark.parametrize("name", ["atss", "dino", "faster_rcnn"])
@pytest.mark.parametrize("strides", [(16,), (4, 8, 16, 32), (8, 32), (14, 28)])
def test_other_pyramids(name, strides):
    info = FeatureInfo((8,) * len(strides), strides, 8, 8, image_size=112)
    head = make_head(name, info, extra_levels=2)
    features = random_features(info=info)
    output = head(features, TARGETS["boxes"])
    assert len(output.maps) == len([s for s in strides if s >= 8]) + 2
    assert all(v.isfinite() for v in head.loss(output, TARGETS["boxes"]).values())


def test_maps_can_be_normed_first():
    head, features = make_head("atss", level_norm=True), random_features()
    features.maps = [3 + 100 * m for m in features.maps]
    norms = head.neck[0].norms
    assert [len(norm.weight) for norm in norms] == [8, 16, 24]
    seen = []
    head.neck[1].register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    sum(losses(head, TARGETS["boxes"], features).values()).backward()
    assert all(m.mean(dim=1).abs().max() < 1e-4 for m in seen)
    assert all((m.var(dim=1, correction=0) - 1).abs().max() < 1e-3 for m in seen)
    assert all(norm.weight.grad.any() for norm in norms)


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
    square, disc = axes.patches  # told apart without colours, and seen on any gray
    assert square.get_linestyle() != disc.get_linestyle()
    assert square.get_edgecolor() != disc.get_edgecolor()
    assert square.get_path_effects()


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


LEARNS = {
    "atss": (100, {"channels": 32, "convs": 1}),
    "fcos": (100, {"channels": 32, "convs": 1}),
    "retinanet": (100, {"channels": 32, "convs": 1}),
}


@pytest.mark.parametrize("name", LEARNS)
def test_learns_a_handful_of_images(name):
    torch.manual_seed(0)
    steps, args = LEARNS[name]
    backbone = TinyBackbone()
    head = DetectionHead(TASK, backbone.info, detector=name, detector_args=args)
    images, target = squares()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(losses(head, target, backbone(images)).values()).backward()
        optimizer.step()
    metric = head.metrics()
    metric.update(head.predict_features(backbone(images)), target)
    assert metric.compute()[head.main_metric] > 0.8
