"""Metrics over ranks."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from ark.types import (
    ClassPrediction,
    MaskPrediction,
    MultilabelTarget,
    SegmentationTarget,
)
from heads.classification.metric import ClassMetric
from heads.segmentation.metric import MaskMetric

pytestmark = pytest.mark.filterwarnings("ignore:.*before the ``update`` method")
CLASSES = ("a", "b", "c", "d")


def random_labels(seed, images=40, known_rate=0.7):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, len(CLASSES), generator=rng).mul(8).round().div(8)  # with ties
    labels = (torch.rand(scores.shape, generator=rng) < 0.4).float()
    known = torch.rand(scores.shape, generator=rng) < known_rate
    return scores, labels, known


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
        assert found == pytest.approx({k: expected[k] for k in found}, abs=1e-6, nan_ok=True), (
            rank,
            name,
        )


def class_metric(patients, scores, labels, known, pieces=1):
    metric = ClassMetric(CLASSES)
    for some in torch.arange(len(scores)).chunk(pieces):
        metric.update(
            ClassPrediction(scores[some]),
            MultilabelTarget(labels[some], known[some]),
            [patients[n] for n in some],
        )
    return metric


def test_intervals_do_not_depend_on_the_order_of_images():
    scores, labels, known = random_labels(1, images=60)
    patients = [f"p{n % 20}" for n in range(60)]
    expected = class_metric(patients, scores, labels, known).intervals(200)
    low, high = expected["auroc"]
    assert low < float(class_metric(patients, scores, labels, known).compute()["auroc"]) < high
    order = torch.randperm(60)
    shuffled = [patients[n] for n in order]
    moved = class_metric(shuffled, scores[order], labels[order], known[order], pieces=4)
    for name, interval in moved.intervals(200).items():
        assert interval == pytest.approx(expected[name], abs=1e-6)


def test_images_of_one_patient_are_no_independent_evidence():
    """Each image ten times: as ten patients the interval would be far too narrow."""
    scores, labels, known = (x.repeat(10, 1) for x in random_labels(2, images=30))
    same = class_metric([f"p{n % 30}" for n in range(300)], scores, labels, known)
    single = class_metric([f"p{n}" for n in range(30)], scores[:30], labels[:30], known[:30])
    other = class_metric([f"p{n}" for n in range(300)], scores, labels, known)

    def width(metric):
        low, high = metric.intervals(300)["auroc"]
        return high - low

    assert width(same) == pytest.approx(width(single), abs=1e-6)
    assert width(other) < 0.6 * width(same)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """The mean Dice of a population of known mean, 95 % intervals of 60 draws of 40 patients."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        metric = MaskMetric(("a",))
        # the prediction has k of 10 pixels of the truth: Dice 2k / (10 + k)
        found = rng.integers(1, 11, 40)
        truth = torch.zeros(40, 1, 1, 20, dtype=torch.uint8)
        truth[..., :10] = 1
        pixels = torch.arange(20).expand(40, 1, 1, 20)
        mine = (pixels < torch.tensor(found)[:, None, None, None]).float()
        metric.update(MaskPrediction(mine), SegmentationTarget(truth, torch.ones(40, 1).bool()))
        low, high = metric.intervals(200)["dice"]
        covered += low <= np.mean([2 * k / (10 + k) for k in range(1, 11)]) <= high
    assert 0.85 <= covered / 60 <= 1


def test_nothing_seen_has_no_interval():
    assert ClassMetric(CLASSES).intervals(10) == {}
