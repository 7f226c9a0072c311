"""Pictures of a classification head: what they say, and that they say it without colour."""

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from ark.types import ClassPrediction, FeatureInfo, MulticlassTarget, MultilabelTarget, TaskSpec
from heads.classification import ClassificationHead

matplotlib.use("Agg")
CLASSES = ("Atelectasis", "Edema", "Mass", "Nodule", "Hernia", "Fibrosis")
INFO = FeatureInfo((16, 320), (16, 32), pooled=320, embedding=12, image_size=64)


def make_head(kind):
    return ClassificationHead(TaskSpec("nih14", "findings", kind, CLASSES), INFO)


def title_of(kind, shown, truth):
    axes = Figure().subplots()
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    make_head(kind).draw(axes, image, shown, index=0, truth=truth)
    return axes.get_title(loc="left")


def test_titles_tell_truth_prediction_and_ignorance():
    everything = torch.ones(1, 6, dtype=torch.bool)
    some = torch.tensor([[0.0, 1, 0, 1, 0, 0]])
    assert title_of("multilabel", MultilabelTarget(some, everything), True) == "Edema, Nodule"
    assert title_of("multilabel", MultilabelTarget(0 * some, everything), True) == "none"
    assert title_of("multilabel", MultilabelTarget(some, ~everything), True) == "unknown"
    partly = everything.clone()
    partly[0, :2] = False
    unknown = title_of("multilabel", MultilabelTarget(some, partly), True).splitlines()[1]
    assert unknown.startswith("(unknown: ")
    assert unknown.count(",") == 1
    all_six = title_of("multilabel", MultilabelTarget(torch.ones(1, 6), everything), True)
    assert all_six.endswith("Nodule +2")
    assert title_of("multiclass", MulticlassTarget(torch.tensor([2])), True) == "Mass"
    uncertain = title_of("multilabel", MultilabelTarget(some * 0.7, everything), True)
    assert uncertain == "Edema 0.70, Nodule 0.70"
    probabilities = ClassPrediction(torch.tensor([[0.1, 0.2, 0.9, 0.05, 0.3, 0.0]]))
    assert title_of("multilabel", probabilities, False) == "Mass 0.90"
    assert title_of("multiclass", probabilities, False) == "Mass 0.90"
    low = ClassPrediction(probabilities.probabilities / 2)
    assert title_of("multilabel", low, False) == "none"


def chart_of(head, shown, truth):
    """Rows of the chart, from above: (mark, class, what stands behind the bar)."""
    axes = Figure().subplots()
    head.draw(axes, torch.zeros(3, 8, 8, dtype=torch.uint8), shown, index=0, truth=truth)
    (chart,) = axes.child_axes
    words = sorted(chart.texts, key=lambda text: (text.get_position()[1], text.get_position()[0]))
    texts = [text.get_text() for text in words]
    return list(zip(*(texts[n::3] for n in range(3)), strict=True)), chart


def test_the_chart_shows_what_matters_most_with_marks_that_need_no_colour():
    head = make_head("multilabel")
    labels = torch.tensor([[0.0, 1, 0, 0.6, 0, 0]])
    known = torch.tensor([[True, True, False, True, True, True]])
    rows, chart = chart_of(head, MultilabelTarget(labels, known), True)
    assert rows == [
        ("●", "Edema", "present"),
        ("●", "Nodule", "0.60"),
        ("?", "Mass", "unknown"),
        ("○", "Atelectasis", "absent"),
    ]
    assert [bool(bar.get_hatch()) for bar in chart.patches].count(True) == 1  # the unknown one
    head.thresholds[:] = torch.tensor([0.5, 0.1, 0.95, 0.5, 0.5, 0.5])
    shown = ClassPrediction(torch.tensor([[0.1, 0.2, 0.9, 0.05, 0.3, 0.0]]))
    rows, chart = chart_of(head, shown, False)
    assert rows == [
        ("●", "Edema", "0.20"),
        ("○", "Mass", "0.90"),
        ("○", "Hernia", "0.30"),
        ("○", "Atelectasis", "0.10"),
    ]
    ticks = [line.get_xdata()[0] for line in chart.lines]
    assert ticks == pytest.approx([0.1, 0.95, 0.5, 0.5])


def test_grades_are_charted_in_their_order_and_the_median_is_marked():
    shown = ClassPrediction(torch.tensor([[0.3, 0.02, 0.25, 0.01, 0.42, 0.0]]))
    rows, chart = chart_of(make_head("ordinal"), shown, False)
    assert [(mark, name) for mark, name, _ in rows] == [
        ("○", "Atelectasis"),
        ("○", "Edema"),
        ("●", "Mass"),
        ("○", "Hernia"),
    ]
    assert not chart.lines  # no threshold decides here


def test_a_long_name_is_cut_and_a_long_title_breaks_between_names():
    names = ("Enlarged Cardiomediastinum", "Pleural Thickening", "Support Devices")
    task = TaskSpec("toy", "labels", "multilabel", names)
    head = ClassificationHead(task, INFO)
    target = MultilabelTarget(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    rows, _ = chart_of(head, target, True)
    assert rows[0][1] == "Enlarged Cardiomed…"
    axes = Figure().subplots()
    head.draw(axes, torch.zeros(3, 8, 8, dtype=torch.uint8), target, 0, truth=True)
    title = axes.get_title(loc="left")
    assert title.splitlines() == [
        "Enlarged Cardiomediastinum,",
        "Pleural Thickening, Support Devices",
    ]
