"""Temperature and thresholds: against brute force, and after distortions that they must undo."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.metrics import f1_score, log_loss

from ark.types import (
    ClassPrediction,
    FeatureInfo,
    Features,
    MulticlassTarget,
    MultilabelTarget,
    TaskSpec,
)
from heads.classification import ClassificationHead
from heads.classification.calibration import TEMPERATURES, best_thresholds
from heads.classification.links import LINKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*before the ``update`` method"),
    pytest.mark.filterwarnings("ignore:The y_prob values do not sum"),  # by float32's rounding
]
CLASSES = ("a", "b", "c")
INFO = FeatureInfo((16,), (16,), pooled=8, embedding=8, image_size=64)
CASES = [("multilabel", None), ("multiclass", None), ("ordinal", "coral"), ("ordinal", "corn")]
every_link = pytest.mark.parametrize(("kind", "loss"), CASES)


def make_head(kind, loss=None):
    torch.manual_seed(0)
    return ClassificationHead(TaskSpec("toy", "labels", kind, CLASSES), INFO, loss=loss)


def drawn(head, images=4000, seed=0):
    """Logits, and labels drawn from the probabilities that they mean: calibrated by nature."""
    rng = torch.Generator().manual_seed(seed)
    count = 2 if head.task.kind == "ordinal" else 3
    logits = torch.randn(images, count, generator=rng) * 2
    logits = logits.sort(1, descending=True).values if head.link == "coral" else logits
    p = LINKS[head.link].probabilities(logits)
    if head.task.kind == "multilabel":
        known = torch.rand(p.shape, generator=rng) < 0.8
        return logits, MultilabelTarget((torch.rand(p.shape, generator=rng) < p) * 1.0, known)
    return logits, MulticlassTarget(torch.multinomial(p, 1, generator=rng)[:, 0])


def evaluate(head, logits, target):
    metric = head.metrics()
    metric.update(head.predict(logits), target)
    return metric


def cost(head, logits, target):
    """Negative log-likelihood by scikit-learn."""
    p = head.predict(logits).probabilities.double().numpy()
    if head.task.kind == "multilabel":
        on = target.known.numpy()
        return log_loss(target.labels.numpy()[on], p[on], labels=[0, 1])
    return log_loss(target.labels.numpy(), p, labels=[0, 1, 2])


@every_link
@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_overconfidence_and_its_opposite(kind, loss, factor):
    head = make_head(kind, loss)
    logits, target = drawn(head)
    before = evaluate(head, logits * factor, target)
    head.calibrate(before)
    assert float(head.temperature) == pytest.approx(factor, rel=0.1)
    after = evaluate(head, logits * factor, target).compute()
    assert after["ece"] < 0.03
    assert after["auroc"] == pytest.approx(float(before.compute()["auroc"]), abs=0.02)


@every_link
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_no_other_temperature_has_a_lesser_log_loss(kind, loss, factor):
    """A standard normal prior on its logarithm included, which weighs as much as one label."""
    head = make_head(kind, loss)
    logits, target = drawn(head, images=300)
    head.calibrate(evaluate(head, logits * factor, target))
    labels = int(target.known.sum()) if kind == "multilabel" else 300

    def posterior() -> float:
        prior = float(head.temperature.log()) ** 2 / 2
        return cost(head, logits * factor, target) + prior / labels

    best, found = posterior(), float(head.temperature)
    for other in np.geomspace(*TEMPERATURES, 60):
        head.temperature.fill_(other)
        assert posterior() >= best - 1e-6, (other, found)


@every_link
def test_calibrating_again_converges(kind, loss):
    """Probabilities of 1 in float32 hide how large a logit was: only the first time there are many
    of them."""
    head = make_head(kind, loss)
    logits, target = drawn(head)
    temperatures, thresholds = [], []
    for _ in range(4):
        head.calibrate(evaluate(head, logits * 3, target))
        temperatures.append(float(head.temperature))
        thresholds.append(head.thresholds.clone())
    assert temperatures == pytest.approx([temperatures[3]] * 4, rel=1e-3)
    assert temperatures[1:] == pytest.approx([temperatures[3]] * 3, rel=1e-6)
    torch.testing.assert_close(thresholds[1], thresholds[3], rtol=1e-5, atol=1e-5)


@every_link
def test_a_wrong_start_and_probabilities_of_one_are_left_behind(kind, loss):
    """At temperature 0.05 most probabilities are 0 or 1 in float32."""
    head, straight = make_head(kind, loss), make_head(kind, loss)
    logits, target = drawn(head)
    straight.calibrate(evaluate(straight, logits, target))
    head.temperature.fill_(0.05)
    for _ in range(8):
        head.calibrate(evaluate(head, logits, target))
    assert float(head.temperature) == pytest.approx(float(straight.temperature), rel=1e-3)


@every_link
@pytest.mark.parametrize("right", [True, False])
def test_a_few_labels_do_not_ask_for_certainty(kind, loss, right):
    """Where all are predicted right the likelihood alone asks for a temperature of 0."""
    head = make_head(kind, loss)
    rows = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    labels = torch.eye(3) if right else torch.eye(3).roll(1, 0)
    target = MulticlassTarget(labels.argmax(1))
    if kind == "multilabel":
        target = MultilabelTarget(labels, torch.ones(3, 3, dtype=torch.bool))
    metric = head.metrics()
    metric.update(ClassPrediction(rows), target)
    head.calibrate(metric)
    assert 0.2 < float(head.temperature) < 1 if right else 1 < float(head.temperature) < 10


@every_link
def test_nothing_to_learn_from_changes_nothing(kind, loss):
    head = make_head(kind, loss)
    head.temperature.fill_(1.7)
    head.thresholds.fill_(0.3)
    metrics = [head.metrics()]
    logits, target = drawn(head, 20)
    metrics.append(evaluate(head, logits * torch.nan, target))
    if kind == "multilabel":
        target.known[:] = False
        metrics.append(evaluate(head, logits, target))
    for metric in metrics:
        head.calibrate(metric)
        assert float(head.temperature) == pytest.approx(1.7)
        assert head.thresholds.tolist() == pytest.approx([0.3] * 3)


def test_logits_that_say_nothing_leave_the_temperature():
    head = make_head("multiclass")
    head.calibrate(evaluate(head, torch.zeros(9, 3), MulticlassTarget(torch.arange(9) % 3)))
    assert float(head.temperature) == 1


@pytest.mark.parametrize("ties", [0, 5])
@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_has_a_greater_f1(seed, ties):
    rng = np.random.default_rng(seed)
    p = rng.random((30, 3))
    p = np.round(p * ties) / ties if ties else p
    labels = (rng.random(p.shape) < 0.2 + 0.5 * p).astype(float)
    labels[rng.random(p.shape) < 0.2] = -1
    found = best_thresholds(p, labels)
    for k in range(3):
        on = labels[:, k] >= 0
        truth = labels[on, k] > 0
        mine = f1_score(truth, p[on, k] >= found[k])
        others = [f1_score(truth, p[on, k] >= t) for t in [0.0, *p[on, k]]]
        assert mine == pytest.approx(max(others))


def test_thresholds_lie_halfway_and_single_sided_classes_keep_one_half():
    p = np.array([[0.9, 0.9, 0.2], [0.7, 0.1, 0.3], [0.2, 0.8, 0.9], [0.1, 0.3, 0.6]])
    labels = np.array([[1.0, 1, -1], [1, 1, -1], [0, 1, 0], [0, 1, 0]])
    assert best_thresholds(p, labels).tolist() == pytest.approx([0.45, 0.5, 0.5])
    lowest = best_thresholds(np.array([[0.2], [0.3], [0.4]]), np.array([[1.0], [0], [1]]))
    assert lowest.tolist() == pytest.approx([0.1])


def test_thresholds_are_of_calibrated_probabilities_and_raise_the_f1_of_the_next_metric():
    head = make_head("multilabel")
    logits, target = drawn(head)
    target.labels *= torch.rand(target.labels.shape) < torch.tensor([1.0, 0.3, 0.1])  # rarer
    before = evaluate(head, logits * 4, target)
    head.calibrate(before)
    assert float(head.temperature) > 2
    after = evaluate(head, logits * 4, target)
    assert after.compute()["f1"] > before.compute()["f1"]
    p, labels = after.everything()
    again = best_thresholds(p.astype(float), labels)
    np.testing.assert_allclose(head.thresholds.numpy(), again, atol=1e-3)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_one_class_an_image_needs_no_thresholds(kind):
    head = make_head(kind)
    logits, target = drawn(head)
    head.calibrate(evaluate(head, logits * 3, target))
    assert head.thresholds.tolist() == [0.5] * 3


def test_a_checkpoint_holds_what_was_chosen_and_predictions_follow():
    head, other = make_head("multilabel"), make_head("multilabel")
    logits, target = drawn(head, 200)
    head.calibrate(evaluate(head, logits * 3, target))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.thresholds, head.thresholds)
    features = Features([], None, torch.randn(5, 8), (64, 64))
    expected = (head.eval()(features) / head.temperature).sigmoid()
    torch.testing.assert_close(other.eval().predict_features(features).probabilities, expected)
    assert not {"temperature", "thresholds"} & {name for name, _ in head.named_parameters()}


def _rank(rank, rendezvous, results):
    """The ranks see 30 and 170 images; then rank 0 sees all and rank 1 none."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    for parts in ((30, 170), (200, 0)):
        head = make_head("multilabel")
        logits, target = drawn(head, 200)
        mine = torch.arange(200).split(parts)[rank]
        metric = head.metrics()
        if len(mine):
            part = MultilabelTarget(target.labels[mine], target.known[mine])
            metric.update(head.predict(logits[mine] * 3), part)
        metric.compute()  # as after every evaluation
        head.calibrate(metric)
        results.put((parts, float(head.temperature), head.thresholds.tolist()))
    torch.distributed.destroy_process_group()


def test_all_ranks_choose_the_same_on_what_all_of_them_saw(tmp_path):
    head = make_head("multilabel")
    logits, target = drawn(head, 200)
    head.calibrate(evaluate(head, logits * 3, target))
    results = mp.get_context("fork").SimpleQueue()
    mp.start_processes(_rank, (str(tmp_path / "store"), results), nprocs=2, start_method="fork")
    found = sorted(results.get() for _ in range(4))
    assert found[0] == found[1]
    assert found[2] == found[3]
    for _, temperature, thresholds in found:
        assert temperature == pytest.approx(float(head.temperature), rel=1e-6)
        assert thresholds == pytest.approx(head.thresholds.tolist(), rel=1e-6)
