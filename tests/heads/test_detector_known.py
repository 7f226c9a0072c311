"""Classes that nobody looked for on an image teach nothing there."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from ark.types import ConfigError, DetectionTarget, FeatureInfo, Features, TaskSpec
from heads.detection import DetectionHead

pytestmark = pytest.mark.filterwarnings("ignore:.*num_anchors", "ignore:torch.meshgrid")
SIZE, K = 128, 3
INFO = FeatureInfo((8, 8, 16), (8, 16, 32), pooled=16, embedding=16, image_size=SIZE)
TASK = TaskSpec("toy", "boxes", "detection", ("square", "disc", "ring"))
DENSE = {"channels": 16, "convs": 1}
DETR = {
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn": 32,
    "queries": 20,
}
ARGS = {
    "atss": DENSE,
    "fcos": DENSE,
    "retinanet": DENSE,
    "faster_rcnn": {"channels": 16, "fc_channels": 16, "proposals": 20, "samples": 16},
    "dino": {**DETR, "denoising": 10},
    "deformable_detr": DETR,
    "deformable_detr, plain": {**DETR, "refine": False, "two_stage": False},
}
SIGMOID = [name for name in ARGS if name != "faster_rcnn"]
BOXES = [torch.tensor([[8.0, 8, 40, 30], [30, 20, 90, 80]]), torch.tensor([[40.0, 40, 74, 94]])]
LABELS = [torch.tensor([0, 1]), torch.tensor([2])]
# of the first image the last class is unknown, of the second the first two
KNOWN = torch.tensor([[True, True, False], [False, False, True]])
NO_BOXES = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2


def make_head(name: str) -> DetectionHead:
    torch.manual_seed(0)
    return DetectionHead(TASK, INFO, name.split(",")[0], ARGS[name])


@pytest.fixture(scope="module", params=ARGS)
def head(request):
    return make_head(request.param)


def features() -> Features:
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, c, SIZE // s, SIZE // s, generator=generator).requires_grad_()
        for c, s in zip(INFO.channels, INFO.strides, strict=True)
    ]
    return Features(maps, None, None, (SIZE, SIZE))


class Logits:
    """What the class layers of a head said, and which image each row is of."""

    def __init__(self, head: DetectionHead) -> None:
        self.tensors: list[torch.Tensor] = []  # (..., channels of classes)
        self.images: list[torch.Tensor] = []
        self.head = head
        if hasattr(head.detector, "roi_head"):
            roi = head.detector.roi_head
            roi.bbox_roi_extractor.register_forward_pre_hook(self._regions)
            roi.bbox_head.fc_cls.register_forward_hook(self._scores)

    def _regions(self, module, inputs):
        self.images = [inputs[1][:, 0].long()]

    def _scores(self, module, inputs, output):
        output.retain_grad()
        self.tensors = [output]

    def of(self, output) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs (logits (rows, channels), image of each row)."""
        raw = output.raw
        if self.tensors:
            return [(self.tensors[0], self.images[0])]
        if isinstance(raw, tuple):
            return [(level, torch.arange(2)) for level in raw[0]]
        found = [raw.scores]
        if raw.noise is not None:
            found.append(raw.proposals.scores)
        return [(scores, torch.arange(2)) for scores in found]


def class_gradients(head: DetectionHead, target: DetectionTarget) -> torch.Tensor:
    """(2, K): the sum of the absolute gradients of each image's logits of each class."""
    watched = Logits(head)
    output = head(features(), target)
    pairs = watched.of(output)
    for logits, _ in pairs:
        logits.retain_grad()
    sum(head.loss(output, target).values()).backward()
    total = torch.zeros(2, K)
    for logits, images in pairs:
        gradient = logits.grad.abs()
        if logits.ndim == 4 and logits.shape[-1] != K:  # (B, A * K, h, w)
            each = gradient.sum(dim=(2, 3)).unflatten(1, (-1, K)).sum(dim=1)
        elif logits.ndim == 4:  # (D, B, Q, K)
            each = gradient.sum(dim=(0, 2))
        elif logits.ndim == 3:  # (B, T, K)
            each = gradient.sum(dim=1)
        else:  # (R, K + 1)
            each = torch.zeros(2, K + 1).index_add(0, images, gradient)[:, :K]
        total += each
    return total


@pytest.mark.parametrize("empty", [True, False])
def test_logits_of_unknown_classes_get_no_gradient_and_others_do(head, empty):
    boxes, labels = NO_BOXES if empty else (BOXES, LABELS)
    everything = class_gradients(head, DetectionTarget(boxes, labels))
    assert (everything > 0).all()
    some = class_gradients(head, DetectionTarget(boxes, labels, KNOWN))
    assert ((some > 0) == KNOWN).all()
    assert (some[~KNOWN] == 0).all()


def losses(head, target):
    torch.manual_seed(3)
    return head.loss(head(features(), target), target)


def test_where_all_is_known_nothing_changes(head):
    expected = losses(head, DetectionTarget(BOXES, LABELS))
    found = losses(head, DetectionTarget(BOXES, LABELS, torch.ones(2, K, dtype=torch.bool)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_boxes_of_unknown_classes_are_no_truth(head):
    without = DetectionTarget([BOXES[0][:1], BOXES[1]], [LABELS[0][:1], LABELS[1]])
    without.known = torch.tensor([[True, False, True], [True, True, True]])
    having = DetectionTarget(BOXES, LABELS, without.known)
    torch.testing.assert_close(losses(head, having), losses(head, without), rtol=0, atol=0)


def test_images_of_which_nothing_is_known_teach_nothing(head):
    nothing = DetectionTarget(BOXES, LABELS, torch.zeros(2, K, dtype=torch.bool))
    seen = features()
    terms = head.loss(head(seen, nothing), nothing)
    assert sum(terms.values()) == 0
    head.zero_grad()
    sum(terms.values()).backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    gradients += [m.grad for m in seen.maps if m.grad is not None]
    assert not any(g.any() for g in gradients)


def test_an_image_of_which_nothing_is_known_takes_no_part(head):
    """Two-stage detectors sample; the others must not be moved by the second image at all."""
    target = DetectionTarget(BOXES, LABELS, torch.tensor([[True] * K, [False] * K]))
    seen = features()
    sum(head.loss(head(seen, target), target).values()).backward()
    assert all(m.grad[0].any() for m in seen.maps)
    assert not any(m.grad[1].any() for m in seen.maps)


@pytest.mark.parametrize("name", SIGMOID)
def test_the_class_loss_is_the_sum_over_known_classes(name):
    """Without boxes it is the focal loss of every logit against 0."""
    head = make_head(name)
    target = DetectionTarget(*NO_BOXES, KNOWN)
    output = head(features(), target)
    terms = head.loss(output, target)
    raw, weight = output.raw, head.detector.bbox_head.loss_cls.loss_weight
    if isinstance(raw, tuple):
        logits = torch.cat(
            [level.unflatten(1, (-1, K)).permute(0, 1, 3, 4, 2).flatten(1, 3) for level in raw[0]],
            dim=1,
        )
    else:
        logits = raw.scores[-1]
    each = sigmoid_focal_loss(logits, torch.zeros_like(logits))
    images = 2 if name in ("atss", "retinanet") else 1  # these count a box of each image at least
    expected = weight * (each * KNOWN[:, None]).sum() / images
    torch.testing.assert_close(terms["loss_cls"], expected)


def test_the_second_stages_softmax_is_over_the_known_classes():
    head = make_head("faster_rcnn")
    target = DetectionTarget(BOXES, LABELS, KNOWN)
    watched = Logits(head)
    rows = {}
    loss = head.detector.roi_head.bbox_head.loss_cls
    loss.register_forward_pre_hook(lambda module, inputs: rows.update(labels=inputs[1]))
    terms = head.loss(head(features(), target), target)
    logits, images = watched.tensors[0], watched.images[0]
    allowed = torch.cat([KNOWN, torch.ones(2, 1, dtype=torch.bool)], dim=1)[images]  # background
    shares = logits.exp() * allowed
    shares = shares / shares.sum(dim=1, keepdim=True)
    expected = -shares.gather(1, rows["labels"][:, None]).log().mean()
    torch.testing.assert_close(terms["loss_cls"], expected)


def test_a_detector_that_cannot_leave_out_classes_says_so():
    detector = "mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py"
    head = DetectionHead(TASK, INFO, detector)
    target = DetectionTarget(BOXES, LABELS, KNOWN)
    with pytest.raises(ConfigError, match=r"mmdet's ConditionalDETR cannot leave out.*dino"):
        head(features(), target)
