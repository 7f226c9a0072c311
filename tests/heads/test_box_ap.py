"""Average precision against values worked out by hand."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from ark.types import BoxPrediction, DetectionTarget
from heads.detection.box_ap import BoxAP

BOX, ELSEWHERE = (10.0, 10.0, 110.0, 110.0), (200.0, 200.0, 260.0, 260.0)
OVER_62 = (10.0, 10.0, 110.0, 72.0)  # IoU 0.62 with BOX: a hit at 3 of the 10 COCO thresholds
OVER_45 = (10.0, 10.0, 110.0, 55.0)  # IoU 0.45: a hit at 0.40 only


IOUS = [0.4, *np.linspace(0.5, 0.95, 10).tolist()]


def prediction(*images) -> BoxPrediction:
    rows = [torch.tensor([(*b, s, c) for b, s, c in image]).view(-1, 6) for image in images]
    return BoxPrediction(
        [r[:, :4] for r in rows], [r[:, 4] for r in rows], [r[:, 5].long() for r in rows]
    )


def target(*images) -> DetectionTarget:
    rows = [torch.tensor([(*b, c) for b, c in image]).view(-1, 5) for image in images]
    return DetectionTarget([r[:, :4] for r in rows], [r[:, 4].long() for r in rows])


def ap(predicted: BoxPrediction, truth: DetectionTarget) -> dict[str, float]:
    metric = BoxAP(("a", "b"))
    metric.update(predicted, truth)
    return {name: value.item() for name, value in metric.compute().items()}


CASES = {
    "perfect": ([(BOX, 0.9, 0)], [(BOX, 0)], {"map": 1, "map50": 1, "map40": 1, "ap50/a": 1}),
    "loose": ([(OVER_62, 0.9, 0)], [(BOX, 0)], {"map": 0.3, "map50": 1, "map40": 1}),
    "looser": ([(OVER_45, 0.9, 0)], [(BOX, 0)], {"map": 0, "map50": 0, "map40": 1}),
    # recall 1/2 at precision 1: 51 of COCO's 101 recall points (0, 0.01, ..., 0.50)
    "half found": ([(BOX, 0.9, 0)], [(BOX, 0), (ELSEWHERE, 0)], {"map50": 51 / 101}),
    "false box first": ([(ELSEWHERE, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0)], {"map50": 0.5}),
    "false box last": ([(ELSEWHERE, 0.1, 0), (BOX, 0.8, 0)], [(BOX, 0)], {"map50": 1}),
    "second hit is false": (
        [(BOX, 0.9, 0), (BOX, 0.8, 0), (ELSEWHERE, 0.7, 0)],
        [(BOX, 0), (ELSEWHERE, 0)],
        {"map50": (51 + 50 * 2 / 3) / 101},
    ),
    "wrong class": ([(BOX, 0.9, 1)], [(BOX, 0)], {"map50": 0, "ap50/a": 0, "ap50/b": None}),
    "absent class is left out": (
        [(BOX, 0.9, 0), (ELSEWHERE, 0.9, 1)],
        [(BOX, 0)],
        {"map": 1, "map50": 1, "ap50/a": 1, "ap50/b": None},
    ),
    "mean over classes": (
        [(BOX, 0.9, 0)],
        [(BOX, 0), (ELSEWHERE, 1)],
        {"map50": 0.5, "ap50/a": 1, "ap50/b": 0},
    ),
    "nothing predicted": ([], [(BOX, 1)], {"map50": 0, "ap50/a": None, "ap50/b": 0}),
    "nothing to find": ([(BOX, 0.9, 0)], [], {"map50": None, "map": None, "ap50/a": None}),
    "nothing at all": ([], [], {"map50": None, "ap50/b": None}),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name, recwarn, capfd):
    predicted, truth, expected = CASES[name]
    result = ap(prediction(predicted), target(truth))
    for key, value in expected.items():
        assert result[key] == pytest.approx(float("nan") if value is None else value, nan_ok=True)
    assert not recwarn.list
    assert "".join(capfd.readouterr()) == ""


def test_order_of_keys_is_that_of_the_classes():
    keys = list(ap(prediction([]), target([])))
    assert keys == ["map40", "map50", "map", "froc", "ap50/a", "ap50/b", "ap40/a", "ap40/b"]


def test_a_box_found_in_another_image_does_not_count():
    result = ap(prediction([(BOX, 0.9, 0)], []), target([], [(BOX, 0)]))
    assert result["map50"] == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_update_everything_is_nan():
    assert all(value.isnan() for value in BoxAP(("a",)).compute().values())


def test_more_boxes_than_cocos_hundred_are_counted():
    corners = [(10.0 * (n % 20), 10.0 * (n // 20)) for n in range(150)]
    grid = [(x, y, x + 8, y + 8) for x, y in corners]
    metric = BoxAP(("a",))
    metric.update(prediction([(b, 0.9, 0) for b in grid]), target([(b, 0) for b in grid]))
    assert metric.compute()["map50"] == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_of_any_length_gather_to_the_same_value():
    images = [
        (prediction([(BOX, 0.9, 0), (ELSEWHERE, 0.3, 1)]), target([(BOX, 0)])),
        (prediction([]), target([(ELSEWHERE, 1)])),
        (prediction([(OVER_62, 0.5, 0)]), target([])),
    ]
    whole, other, empty = BoxAP(("a", "b")), BoxAP(("a", "b")), BoxAP(("a", "b"))
    for image in images:
        whole.update(*image)
        other.update(*image)
    states = [getattr(other, name) for name in other._reductions]
    theirs = iter([torch.cat(state) if isinstance(state, list) else state for state in states])

    def gather(mine, group):
        assert mine.ndim <= 1
        assert mine.dtype == torch.float32
        return [mine, next(theirs)]

    empty.dist_sync_fn, empty.distributed_available_fn = gather, lambda: True
    torch.testing.assert_close(empty.compute(), whole.compute(), rtol=0, atol=0, equal_nan=True)


def random_images(count: int, classes: int, seed: int):
    """Truth, and predictions near it, elsewhere and of other classes; both may be empty."""
    g = torch.Generator().manual_seed(seed)
    predicted, truths = [], []
    for n in range(count):
        boxes = int(torch.randint(0, 5, (1,), generator=g)) * (n % 5 > 0)
        corner = torch.rand(boxes, 2, generator=g) * 200
        truth = torch.cat([corner, corner + 10 + 80 * torch.rand(boxes, 2, generator=g)], dim=1)
        labels = torch.randint(0, classes, (boxes,), generator=g)
        near = truth.repeat(3, 1) + 12 * torch.randn(3 * boxes, 4, generator=g)
        far = 200 * torch.rand(3 * (n % 3), 2, generator=g)
        found = torch.cat([near, torch.cat([far, far + 30], dim=1)])
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        named = torch.cat([labels.repeat(3), torch.randint(0, classes, (len(far),), generator=g)])
        scores = torch.rand(len(found), generator=g)
        order = scores.argsort(descending=True)
        predicted.append((found[order], scores[order], named[order]))
        truths.append((truth, labels))
    return predicted, truths


def as_batch(predicted, truths, known=None):
    found = BoxPrediction(*(list(column) for column in zip(*predicted, strict=True)))
    return found, DetectionTarget(*(list(column) for column in zip(*truths, strict=True)), known)


@pytest.mark.parametrize(
    ("count", "classes", "seed"), [(1, 1, 0), (12, 1, 1), (25, 3, 2), (40, 5, 3)]
)
def test_equals_torchmetrics(count, classes, seed):
    predicted, truths = random_images(count, classes, seed)
    names = [f"c{k}" for k in range(classes)]
    metric = BoxAP(names)
    for start in range(0, count, 4):
        metric.update(*as_batch(predicted[start : start + 4], truths[start : start + 4]))
    coco = MeanAveragePrecision(
        iou_thresholds=IOUS,
        # COCO's own; torchmetrics rounds them to float32, and a recall of 0.3 misses 0.30000001
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        max_detection_thresholds=[1, 10, 1000],
        extended_summary=True,
        backend="faster_coco_eval",
    )
    coco.update(
        [dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in predicted],
        [dict(zip(("boxes", "labels"), image, strict=True)) for image in truths],
    )
    reference = coco.compute()
    precision = reference["precision"][:, :, :, 0, -1]
    precision = precision.where(precision >= 0, torch.nan).mean(dim=1)  # -1: no such box in truth
    expected = {f"ap50/{name}": torch.nan for name in names} | {
        "map40": precision[0].nanmean(),
        "map50": precision[1].nanmean(),
        "map": precision[1:].nanmean(),
    }
    for column, k in enumerate(torch.atleast_1d(reference["classes"]).tolist()):
        expected[f"ap50/c{k}"] = precision[1, column]
        expected[f"ap40/c{k}"] = precision[0, column]
    found = metric.compute()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), abs=1e-6, nan_ok=True), name


def test_a_weight_counts_as_so_many_images():
    predicted, truths = random_images(15, 3, 4)
    metric = BoxAP("abc")
    metric.update(*as_batch(predicted, truths))
    weights = np.random.default_rng(0).integers(0, 4, size=15)
    several = BoxAP("abc")
    chosen = np.repeat(np.arange(15), weights)
    several.update(*as_batch([predicted[n] for n in chosen], [truths[n] for n in chosen]))
    expected = several.score(several.evidence(), np.ones(len(chosen)))
    found = metric.score(metric.evidence(), weights.astype(float))
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    brief = metric.score(metric.evidence(), weights.astype(float), brief=True)
    assert brief == {name: found[name] for name in ("map40", "map50", "map", "froc")}


def froc_of(predicted, truths, classes: int) -> float:
    """Every threshold by itself, straight from the definition."""
    thresholds = sorted({float(s) for _, scores, _ in predicted for s in scores})
    boxes = sum(len(labels) for _, labels in truths)
    points = [(0.0, 0.0)]  # false boxes an image, share found
    for threshold in thresholds:
        hits = false = 0
        for (found, scores, named), (truth, labels) in zip(predicted, truths, strict=True):
            for k in range(classes):
                free = truth[labels == k]
                mine = (named == k) & (scores >= threshold)
                for box in found[mine][scores[mine].argsort(descending=True)]:
                    overlaps = box_iou(box[None], free)[0] if len(free) else torch.zeros(0)
                    if len(free) and overlaps.max() >= 0.5:
                        hits += 1
                        free = free[torch.arange(len(free)) != overlaps.argmax()]
                    else:
                        false += 1
        points.append((false / len(truths), hits / boxes))
    allowed = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    return float(np.mean([max(y for x, y in points if x <= most) for most in allowed]))


@pytest.mark.parametrize(("count", "classes", "seed"), [(6, 1, 5), (12, 3, 6), (20, 2, 7)])
def test_froc_by_definition(count, classes, seed):
    predicted, truths = random_images(count, classes, seed)
    # equal scores: no threshold parts them
    predicted = [(boxes, (scores * 20).round() / 20, named) for boxes, scores, named in predicted]
    metric = BoxAP([f"c{k}" for k in range(classes)])
    metric.update(*as_batch(predicted, truths))
    expected = froc_of(predicted, truths, classes)
    assert 0 < expected < 1
    assert float(metric.compute()["froc"]) == pytest.approx(expected, abs=1e-6)


def test_froc_by_hand():
    found = ap(prediction([(BOX, 0.9, 0)], []), target([(BOX, 0)], []))
    assert found["froc"] == 1
    # the box is found below one false box in two images: not at 1/8 and 1/4
    second = ap(prediction([(ELSEWHERE, 0.9, 0), (BOX, 0.8, 0)], []), target([(BOX, 0)], []))
    assert second["froc"] == pytest.approx(5 / 7)
    assert ap(prediction([(BOX, 0.9, 1)]), target([(BOX, 0)]))["froc"] == 0


def test_unknown_classes_count_neither_as_hits_nor_as_false():
    predicted, truths = random_images(20, 3, 8)
    known = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    known[4] = False  # nobody looked for anything
    metric = BoxAP("abc")
    metric.update(*as_batch(predicted, truths, known))
    kept = [[image for n, image in enumerate(images) if n != 4] for images in (predicted, truths)]
    sure = [row for n, row in enumerate(known) if n != 4]
    without = BoxAP("abc")
    without.update(
        *as_batch(
            [
                tuple(column[row[image[2]]] for column in image)
                for image, row in zip(kept[0], sure, strict=True)
            ],
            [
                tuple(column[row[image[1]]] for column in image)
                for image, row in zip(kept[1], sure, strict=True)
            ],
        )
    )
    torch.testing.assert_close(metric.compute(), without.compute(), rtol=0, atol=1e-9)


def test_intervals_hold_the_value_and_are_of_patients():
    predicted, truths = random_images(40, 2, 9)
    metric, twice = BoxAP("ab"), BoxAP("ab")
    patients = [f"p{n}" for n in range(40)]
    metric.update(*as_batch(predicted, truths), patients)
    twice.update(*as_batch(predicted * 2, truths * 2), patients * 2)  # no new patient
    intervals, values = metric.intervals(200), metric.compute()
    assert set(intervals) == {"map40", "map50", "map", "froc"}
    for name, (low, high) in intervals.items():
        assert low < float(values[name]) < high
        assert low > 0
    for name, (low, high) in twice.intervals(200).items():
        assert (low, high) == pytest.approx(intervals[name], abs=0.02)
