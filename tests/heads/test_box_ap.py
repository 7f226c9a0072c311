"""Average precision against values worked out by hand."""

import pytest
import torch

from ark.types import BoxPrediction, DetectionTarget
from heads.box_ap import BoxAP

BOX, ELSEWHERE = (10.0, 10.0, 110.0, 110.0), (200.0, 200.0, 260.0, 260.0)
OVER_62 = (10.0, 10.0, 110.0, 72.0)  # IoU 0.62 with BOX: a hit at 3 of the 10 COCO thresholds
OVER_45 = (10.0, 10.0, 110.0, 55.0)  # IoU 0.45: a hit at 0.40 only


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
    assert keys == ["map40", "map50", "map", "ap50/a", "ap50/b"]


def test_a_box_found_in_another_image_does_not_count():
    result = ap(prediction([(BOX, 0.9, 0)], []), target([], [(BOX, 0)]))
    assert result["map50"] == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_update_everything_is_nan():
    assert all(value.isnan() for value in BoxAP(("a",)).compute().values())


def test_more_boxes_than_cocos_hundred_are_counted():
    corners = [(10.0 * (n % 20), 10.0 * (n // 20)) for n in range(150)]
    grid = [(x, y, x + 8, y + 8) for x, y in corners]
    metric = BoxAP(("a",), max_boxes=150)
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
    theirs = iter([torch.cat(getattr(other, name)) for name in other._reductions])

    def gather(mine, group):
        assert mine.ndim == 1
        assert mine.dtype == torch.float32
        return [mine, next(theirs)]

    empty.dist_sync_fn, empty.distributed_available_fn = gather, lambda: True
    torch.testing.assert_close(empty.compute(), whole.compute(), rtol=0, atol=0, equal_nan=True)
