from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jsonargparse import ArgumentParser

from ark.pseudo import PseudoLabels, fill, lacking, pseudo_by_task, share_filled
from ark.types import (
    BoxPrediction,
    ClassPrediction,
    ConfigError,
    DetectionTarget,
    MaskPrediction,
    MultilabelTarget,
    PointsPrediction,
    SegmentationTarget,
    ValuesPrediction,
)
from toys import HEADS, make_target, make_task

SURE = PseudoLabels(low=0.1, high=0.9)
HALF, ALL = torch.tensor([[True, False, False, False]]), torch.ones(1, 4, dtype=torch.bool)


def copied(target):
    return target._map(torch.clone)


def assert_equal(one, other) -> None:
    """Two targets of the same kind hold the same."""
    pairs: list = []
    one._map(lambda t: pairs.append(t) or t)
    seen = list(pairs)
    pairs.clear()
    other._map(lambda t: pairs.append(t) or t)
    assert len(seen) == len(pairs)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(seen, pairs, strict=True))


# -- yes/no labels --------------------------------------------------------------------------

PROBABILITIES = torch.tensor([[0.99, 0.95, 0.02, 0.6]])


@pytest.mark.parametrize("soft", [False, True])
def test_a_sure_teacher_fills_labels_and_an_unsure_one_does_not(soft: bool) -> None:
    target = MultilabelTarget(torch.zeros(1, 4), HALF)
    before = copied(target)
    found = fill(target, ClassPrediction(PROBABILITIES), replace(SURE, soft=soft))
    expected = [0.0, 0.95, 0.02, 0.0] if soft else [0.0, 1.0, 0.0, 0.0]
    assert_equal(
        found, MultilabelTarget(torch.tensor([expected]), torch.tensor([[True, True, True, False]]))
    )
    assert_equal(target, before)
    assert float(share_filled(target, found)) == pytest.approx(2 / 3)
    assert share_filled(found, found) == 0


def test_probabilities_of_half_precision_and_of_nothing_fit_the_target() -> None:
    prediction = torch.tensor([[0.5, 0.99, torch.nan, 0.5]], dtype=torch.bfloat16)
    found = fill(MultilabelTarget(torch.zeros(1, 4), HALF), ClassPrediction(prediction), SURE)
    assert_equal(
        found,
        MultilabelTarget(
            torch.tensor([[0.0, 1, 0, 0]]), torch.tensor([[True, True, False, False]])
        ),
    )


# -- masks ----------------------------------------------------------------------------------


def mask_probabilities() -> torch.Tensor:
    """(1, 4, 4, 4): class 0 is known; 1 is sure inside with an unsure rim, 2 surely absent, 3
    half sure."""
    p = torch.full((1, 4, 4, 4), 0.01)
    p[0, 1, :2] = 0.99
    p[0, 1, 2] = 0.45
    p[0, 3, :2] = 0.7
    return p


def mask_target(raters: bool = False) -> SegmentationTarget:
    masks = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    masks[0, 0, 0, :] = 2 if raters else 1
    counts = torch.full((1, 4), 3, dtype=torch.uint8) if raters else None
    return SegmentationTarget(masks, HALF, counts)


@pytest.mark.parametrize("raters", [False, True])
def test_whole_masks_are_filled_or_left_unknown(raters: bool) -> None:
    target = mask_target(raters)
    before = copied(target)
    found = fill(target, MaskPrediction(mask_probabilities()), SURE)
    expected = before.masks.clone()
    expected[0, 1, :2] = 1
    counts = torch.tensor([[3, 1, 1, 3]], dtype=torch.uint8) if raters else None
    known = torch.tensor([[True, True, True, False]])
    assert_equal(found, SegmentationTarget(expected, known, counts))
    assert_equal(target, before)
    assert found.share().max() <= 1


def test_exclusive_masks_leave_annotated_pixels_alone() -> None:
    target, p = mask_target(), mask_probabilities() * 0.97
    found = fill(target, MaskPrediction(p, exclusive=True), SURE)
    assert found.known.tolist() == [[True, True, True, False]]
    assert torch.equal(found.masks[0, 0], target.masks[0, 0])
    assert found.masks[0, 1].sum(dim=1).tolist() == [0, 4, 0, 0]  # row 0 is annotated as class 0
    assert (found.masks.sum(dim=1) <= 1).all()


def test_an_empty_mask_with_an_unsure_pixel_is_not_surely_empty() -> None:
    p = torch.full((1, 4, 4, 4), 0.01)
    p[0, 1, 3, 3] = 0.3
    found = fill(mask_target(), MaskPrediction(p), SURE)
    assert found.known.tolist() == [[True, False, True, True]]


# -- boxes ----------------------------------------------------------------------------------


def box_prediction(*rows: tuple[float, float, int]) -> BoxPrediction:
    """One image; rows of (x, score, label)."""
    x = torch.tensor([row[0] for row in rows])
    return BoxPrediction(
        [torch.stack([x, x, x + 8, x + 8], dim=1) if rows else torch.zeros(0, 4)],
        [torch.tensor([row[1] for row in rows])],
        [torch.tensor([row[2] for row in rows], dtype=torch.int64)],
    )


def box_target(known: torch.Tensor | None = HALF) -> DetectionTarget:
    box, label = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0])
    return DetectionTarget([box], [label], known)


def test_sure_boxes_are_added_and_their_class_is_known() -> None:
    target = box_target()
    before = copied(target)
    prediction = box_prediction((1, 0.99, 0), (2, 0.95, 1), (3, 0.5, 1), (4, 0.5, 2), (5, 0.05, 3))
    found = fill(target, prediction, SURE)
    expected = DetectionTarget(
        [torch.tensor([[0.0, 0, 9, 9], [2, 2, 10, 10]])],
        [torch.tensor([0, 1])],
        torch.tensor([[True, True, False, True]]),  # 2 may be there, 3 is nowhere
    )
    assert_equal(found, expected)
    assert_equal(target, before)


def test_a_teacher_that_sees_nothing_says_so() -> None:
    found = fill(box_target(), box_prediction(), SURE)
    assert_equal(found, box_target(ALL))


def test_a_box_that_taught_nothing_gives_way_to_the_teachers() -> None:
    """A class that nobody looked for has no boxes in Ark's readers, and in no loss."""
    known = torch.tensor([[False, True, True, True]])
    found = fill(box_target(known), box_prediction((2, 0.95, 0)), SURE)
    assert found.boxes[0].tolist() == [[2, 2, 10, 10]]
    unsure = fill(box_target(known), box_prediction((2, 0.5, 0)), SURE)
    assert_equal(unsure, box_target(known))


def test_boxes_of_two_images_stay_apart() -> None:
    one, other = box_prediction((2, 0.95, 1)), box_prediction((3, 0.5, 1))
    prediction = BoxPrediction(*(getattr(one, f) + getattr(other, f) for f in vars(one)))
    target = DetectionTarget(
        [torch.zeros(0, 4)] * 2,
        [torch.zeros(0, dtype=torch.int64)] * 2,
        torch.zeros(2, 2, dtype=torch.bool),
    )
    found = fill(target, prediction, SURE)
    assert found.known.tolist() == [[True, True], [True, False]]
    assert [len(boxes) for boxes in found.boxes] == [1, 0]


# -- what is not filled ---------------------------------------------------------------------


def test_targets_that_lack_nothing_or_cannot_be_filled_are_returned_as_they_are() -> None:
    complete = [
        (MultilabelTarget(torch.zeros(1, 4), ALL), ClassPrediction(PROBABILITIES)),
        (make_target("multiclass", 2), ClassPrediction(torch.eye(3)[:2])),
        (make_target("ordinal", 2), ClassPrediction(torch.eye(3)[:2])),
        (box_target(None), box_prediction((2, 0.95, 1))),
        (box_target(ALL), box_prediction((2, 0.95, 1))),
        (replace(mask_target(), known=ALL), MaskPrediction(mask_probabilities())),
        (make_target("values", 2), ValuesPrediction(torch.ones(2, 3))),
        (make_target("points", 2), PointsPrediction(torch.ones(2, 3, 2), torch.ones(2, 3))),
    ]
    for target, prediction in complete:
        assert not lacking(target)
        assert fill(target, prediction, SURE) is target
    assert all(lacking(make_target(kind, 2)) for kind in ("multilabel", "segmentation"))


@pytest.mark.parametrize("change", [{"low": 0.0}, {"high": 0.5}, {"soft": True}])
def test_every_option_acts_on_labels(change: dict) -> None:
    target, prediction = MultilabelTarget(torch.zeros(1, 4), HALF), ClassPrediction(PROBABILITIES)
    with pytest.raises(AssertionError):
        assert_equal(
            fill(target, prediction, SURE), fill(target, prediction, replace(SURE, **change))
        )


def test_labels_are_filled_from_a_share_of_the_run_on() -> None:
    config = PseudoLabels(after=0.25)
    assert [config.begun(step, 8) for step in range(4)] == [False, False, True, True]
    assert PseudoLabels().begun(0, 8)


# -- configuration --------------------------------------------------------------------------


def test_a_tasks_key_goes_before_its_kind_and_others_are_off() -> None:
    tasks = [make_task("multilabel"), make_task("multilabel", "other"), make_task("segmentation")]
    own = PseudoLabels(high=0.8)
    found = pseudo_by_task(tasks, {"multilabel": SURE, "other/multilabel": own})
    assert found == {"toy/multilabel": SURE, "other/multilabel": own}
    assert pseudo_by_task(tasks, {}) == {}


BAD = {
    "no task": ({"toy/boxes": SURE}, "toy/boxes: expected a task key or a kind of .*toy/val"),
    "values": ({"toy/values": SURE}, "values has none, a prediction without probabilities"),
    "ordinal": ({"ordinal": SURE}, "ordinal has none, each image has its class"),
    "soft boxes": ({"detection": replace(SURE, soft=True)}, "soft is for kind multilabel"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_fix(case: str) -> None:
    given, message = BAD[case]
    tasks = [make_task(kind) for kind in HEADS]
    with pytest.raises(ConfigError, match=message):
        pseudo_by_task(tasks, given)


@pytest.mark.parametrize("bad", [{"low": 0.9, "high": 0.1}, {"high": 1.1}, {"after": 1.0}])
def test_impossible_numbers_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match=r"pseudo_labels: .*; expected"):
        PseudoLabels(**bad)


def test_is_configured_by_kind() -> None:
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--pseudo_labels", type=dict[str, PseudoLabels] | None, default=None)
    text = "pseudo_labels: {multilabel: {soft: true}, detection: {high: 0.7}}"
    found = parser.instantiate_classes(parser.parse_string(text)).pseudo_labels
    assert found == {"multilabel": PseudoLabels(soft=True), "detection": PseudoLabels(high=0.7)}
