"""Oracles: brute-force pair counting for AUROC, numpy loops for Dice and IoU."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from ark.types import (
    ClassPrediction,
    MaskPrediction,
    MulticlassTarget,
    MultilabelTarget,
    SegmentationTarget,
)
from heads.metrics import ClassMetric, MaskMetric

pytestmark = pytest.mark.filterwarnings("ignore:.*before the ``update`` method")
CLASSES = ("a", "b", "c", "d")


def auroc_by_pairs(scores, labels):
    """The share of (positive, negative) pairs in the right order; a tie is half a pair."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return np.nan
    difference = positive[:, None] - negative[None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


def random_labels(seed, images=40, known_rate=0.7):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, len(CLASSES), generator=rng).mul(8).round().div(8)  # with ties
    labels = (torch.rand(scores.shape, generator=rng) < 0.4).float()
    known = torch.rand(scores.shape, generator=rng) < known_rate
    return scores, labels, known


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs_of_known_labels(seed):
    scores, labels, known = random_labels(seed)
    labels[:, 3] = 0  # no positive: left out of the mean
    metric = ClassMetric(CLASSES)
    for part in torch.arange(len(scores)).split(7):
        truth = MultilabelTarget(labels[part], known[part])
        metric.update(ClassPrediction(scores[part]), truth)
    result = metric.compute()
    expected = [
        auroc_by_pairs(scores[known[:, k], k].numpy(), labels[known[:, k], k].numpy())
        for k in range(len(CLASSES))
    ]
    found = [float(result[f"auroc/{name}"]) for name in CLASSES]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found[3])
    assert float(result["auroc"]) == pytest.approx(np.mean(expected[:3]), abs=1e-6)


def test_auroc_takes_a_soft_label_as_positive_from_one_half():
    metric = ClassMetric(("a",))
    labels = torch.tensor([[0.7], [0.2], [0.5], [0.0]])
    scores = torch.tensor([[0.9], [0.1], [0.8], [0.2]])
    metric.update(ClassPrediction(scores), MultilabelTarget(labels, torch.ones(4, 1).bool()))
    assert metric.compute()["auroc"] == 1


@pytest.mark.parametrize("multiclass", [False, True])
def test_metric_without_a_single_image_is_nan_with_the_same_keys(multiclass):
    empty = ClassMetric(CLASSES, multiclass).compute()
    assert all(value.isnan() for value in empty.values())
    assert {"auroc", "auroc/a"} <= set(empty)
    assert ("accuracy" in empty) == multiclass


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_auroc_is_one_against_the_rest_and_accuracy_counts_hits(seed):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(30, 4, generator=rng).softmax(dim=1)
    labels = torch.randint(0, 3, (30,), generator=rng)  # class d never occurs
    metric = ClassMetric(CLASSES, multiclass=True)
    metric.update(ClassPrediction(scores), MulticlassTarget(labels))
    result = metric.compute()
    expected = [
        auroc_by_pairs(scores[:, k].numpy(), (labels == k).long().numpy()) for k in range(4)
    ]
    assert float(result["auroc"]) == pytest.approx(np.nanmean(expected), abs=1e-6)
    hits = np.mean([int(scores[n].argmax()) == int(labels[n]) for n in range(30)])
    assert float(result["accuracy"]) == pytest.approx(hits)


def dice_and_iou(found, truth):
    both, either = (found & truth).sum(), (found | truth).sum()
    if either == 0:
        return 1.0, 1.0
    return 2 * both / (found.sum() + truth.sum()), both / either


@pytest.mark.parametrize("seed", range(5))
def test_dice_and_iou_are_means_over_annotated_images(seed):
    rng = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(9, 4, 6, 5, generator=rng)
    masks = (torch.rand(9, 4, 6, 5, generator=rng) < 0.4).to(torch.uint8)
    known = torch.rand(9, 4, generator=rng) < 0.6
    known[:, 3] = False  # nobody annotated this class
    masks[:4] = 0
    probabilities[:2] *= 0.4  # empty against empty, and empty against something
    metric = MaskMetric(CLASSES)
    for part in torch.arange(9).split(4):
        truth = SegmentationTarget(masks[part], known[part])
        metric.update(MaskPrediction(probabilities[part]), truth)
    result = metric.compute()

    found, truth = (probabilities >= 0.5).numpy(), masks.bool().numpy()
    pairs = [
        [dice_and_iou(found[n, k], truth[n, k]) for n in range(9) if known[n, k]] for k in range(3)
    ]
    means = np.array([np.mean(each, axis=0) for each in pairs])
    np.testing.assert_allclose([result[f"dice/{c}"] for c in "abc"], means[:, 0], atol=1e-6)
    assert result["dice/d"].isnan()
    assert float(result["dice"]) == pytest.approx(means[:, 0].mean(), abs=1e-6)
    assert float(result["iou"]) == pytest.approx(means[:, 1].mean(), abs=1e-6)


def test_empty_against_empty_is_one_and_against_something_is_zero():
    metric = MaskMetric(("a",))
    known = torch.ones(2, 1, dtype=torch.bool)
    probabilities = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    nothing = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    metric.update(MaskPrediction(probabilities), SegmentationTarget(nothing, known))
    assert metric.compute()["dice"] == 0.5
    metric.reset()
    assert metric.compute()["dice"].isnan()


def _rank(rank, rendezvous, results):
    """Rank 1 sees nothing in the first round; in the second the ranks see 3 and 9 images."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    scores, labels, known = random_labels(0, images=12)
    masks = labels[..., None, None].to(torch.uint8).expand(-1, -1, 2, 2)
    for name, parts in {"one idle": (12, 0), "uneven": (3, 9)}.items():
        mine = torch.arange(12).split(list(parts))[rank]
        classes, areas = ClassMetric(CLASSES), MaskMetric(CLASSES)
        if len(mine):
            classes.update(
                ClassPrediction(scores[mine]), MultilabelTarget(labels[mine], known[mine])
            )
            areas.update(
                MaskPrediction(scores[mine][..., None, None].expand(-1, -1, 2, 2)),
                SegmentationTarget(masks[mine], known[mine]),
            )
        results.put((rank, name, {k: float(v) for k, v in classes.compute().items()}))
        results.put((rank, name, {k: float(v) for k, v in areas.compute().items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one_also_where_a_rank_saw_nothing(tmp_path):
    scores, labels, known = random_labels(0, images=12)
    masks = labels[..., None, None].to(torch.uint8).expand(-1, -1, 2, 2)
    classes, areas = ClassMetric(CLASSES), MaskMetric(CLASSES)
    classes.update(ClassPrediction(scores), MultilabelTarget(labels, known))
    areas.update(
        MaskPrediction(scores[..., None, None].expand_as(masks)), SegmentationTarget(masks, known)
    )
    expected = {k: float(v) for k, v in (classes.compute() | areas.compute()).items()}

    results = mp.get_context("fork").SimpleQueue()
    mp.start_processes(_rank, (str(tmp_path / "store"), results), nprocs=2, start_method="fork")
    for _ in range(8):
        rank, name, found = results.get()
        assert found == pytest.approx({k: expected[k] for k in found}, abs=1e-6), (rank, name)
