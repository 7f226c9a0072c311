"""Each loss against numpy loops over what is annotated, and against smp's own where all is."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

from ark.types import ConfigError, SegmentationTarget
from heads.segmentation.losses import TERMS, MaskLoss

IMAGES, CLASSES, SIZE = 4, 3, (7, 6)
MODES = ("multilabel", "multiclass")
EVERY_TERM = [(mode, term) for mode in MODES for term in TERMS[mode]]
OPTIONS = {"focal": {"gamma": 3.0}, "tversky": {"alpha": 0.2, "beta": 0.6}}
every_term = pytest.mark.parametrize(("mode", "term"), EVERY_TERM)


def loss_of(mode, term, weight=1.0):
    options = {term: OPTIONS[term]} if term in OPTIONS else None
    return MaskLoss({term: weight}, options, mode == "multiclass", "head of task a/b")


def make_logits(mode, seed):
    rng = torch.Generator().manual_seed(seed)
    channels = CLASSES + (mode == "multiclass")
    return (2 * torch.randn(IMAGES, channels, *SIZE, generator=rng)).requires_grad_()


def make_target(mode, seed, known_rate=1.0, raters=1):
    """In mode multiclass masks do not overlap; class 1 has no pixel at all."""
    rng = np.random.default_rng(seed)
    votes = np.zeros((IMAGES, CLASSES, *SIZE), np.uint8)
    for _ in range(raters):
        if mode == "multiclass":
            label = rng.integers(0, CLASSES + 1, (IMAGES, *SIZE))
            votes += np.stack([label == k + 1 for k in range(CLASSES)], axis=1).astype(np.uint8)
        else:
            votes += (rng.random(votes.shape) < 0.4).astype(np.uint8)
    votes[:, 1] = 0
    known = rng.random((IMAGES, CLASSES)) < known_rate
    counts = None if raters == 1 else torch.full((IMAGES, CLASSES), raters, dtype=torch.uint8)
    return SegmentationTarget(torch.tensor(votes), torch.tensor(known), counts)


def grids(mode, logits, target):
    """Probabilities, truth and known as numpy (B, C, H, W), (B, C, H, W), (B, C)."""
    z, truth = logits.detach().double().numpy(), target.share().double().numpy()
    known = target.known.numpy()
    if mode == "multilabel":
        return 1 / (1 + np.exp(-z)), truth, known
    truth = truth * known[..., None, None]
    truth = np.concatenate([1 - truth.sum(axis=1, keepdims=True), truth], axis=1)
    known = np.concatenate([known.any(axis=1, keepdims=True), known], axis=1)
    odds = np.exp(z) * known[..., None, None]  # the softmax runs over what is annotated
    with np.errstate(invalid="ignore"):  # an image where nothing is: not read
        return odds / odds.sum(axis=1, keepdims=True), truth, known


def overlap_by_loops(p, t, known, alpha, beta):
    """1 - Tversky of each class over the annotated images; 0 where no pixel is positive."""
    terms = []
    for k in range(p.shape[1]):
        rows = known[:, k]
        if rows.any():
            hit = np.minimum(p[rows, k], t[rows, k]).sum()
            false, missed = p[rows, k].sum() - hit, t[rows, k].sum() - hit
            score = hit / (hit + alpha * false + beta * missed)
            terms.append(1 - score if t[rows, k].sum() > 0 else 0.0)
    return np.mean(terms) if terms else 0.0


def pixelwise(mode, p, t, known, of):
    """The mean of a function of the cross entropy over the annotated pixels."""
    values = []
    for n in range(len(p)):
        if mode == "multiclass" and known[n].any():
            chosen = known[n]
            values.append(of(-(t[n, chosen] * np.log(p[n, chosen])).sum(axis=0)).mean())
        elif mode == "multilabel":
            for k in np.flatnonzero(known[n]):
                a, b = t[n, k], p[n, k]
                values.append(of(-(a * np.log(b) + (1 - a) * np.log(1 - b))).mean())
    return np.mean(values) if values else 0.0


def jaccard_steps(truth):
    """How much each further error costs in IoU, in the order given (Algorithm 1)."""
    steps, before = [], 0.0
    for n in range(1, len(truth) + 1):
        lost, invented = truth[:n].sum(), n - truth[:n].sum()
        jaccard = 1 - (truth.sum() - lost) / (truth.sum() + invented)
        steps.append(jaccard - before)
        before = jaccard
    return np.array(steps)


def lovasz_by_loops(mode, p, t, known, z):
    hard = t >= 0.5
    terms = []
    for k in range(p.shape[1]):
        rows = known[:, 0] if mode == "multiclass" else known[:, k]
        if not rows.any():
            continue
        truth = hard[rows, k].ravel().astype(float)
        if mode == "multiclass":
            if not truth.any():
                continue  # only the classes that are present
            score = np.nan_to_num(p[rows, k] * known[rows, k, None, None]).ravel()
            errors = np.abs(truth - score)
        else:
            errors = np.maximum(0, 1 - z[rows, k].ravel() * (2 * truth - 1))
        order = np.argsort(-errors, kind="stable")
        terms.append(errors[order] @ jaccard_steps(truth[order]))
    return np.mean(terms) if terms else 0.0


def expected(mode, term, logits, target):
    p, t, known = grids(mode, logits, target)
    if term in ("dice", "tversky"):
        alpha, beta = (0.5, 0.5) if term == "dice" else (0.2, 0.6)
        return overlap_by_loops(p, t, known, alpha, beta)
    if term == "lovasz":
        if mode == "multiclass":  # a rater's share below one half makes the pixel background
            t = t.copy()
            t[:, 0] = 1 - (t[:, 1:] >= 0.5).any(axis=1)
        return lovasz_by_loops(mode, p, t, known, logits.detach().numpy())
    exponent = 3.0 if term == "focal" else 0.0
    return pixelwise(mode, p, t, known, lambda s: (1 - np.exp(-s)) ** exponent * s)


@every_term
@pytest.mark.parametrize("raters", [1, 3])
@pytest.mark.parametrize("known_rate", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_each_loss_equals_loops_over_what_is_annotated(mode, term, raters, known_rate, seed):
    logits, target = make_logits(mode, seed), make_target(mode, seed, known_rate, raters)
    (name, found), *others = loss_of(mode, term, weight=2.0)(logits, target).items()
    assert name == term
    assert not others
    assert float(found.detach()) == pytest.approx(
        2 * expected(mode, term, logits, target), abs=2e-5
    )
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()
    touched = gradient.abs().sum(dim=(2, 3)) > 0
    classes = touched[:, 1:] if mode == "multiclass" else touched
    assert not (classes & ~target.known).any()  # not annotated is not background
    if mode == "multilabel" and term in ("bce", "focal"):
        assert torch.equal(classes, target.known)
    if not target.known.any():
        assert found == 0
        assert not gradient.any()


@every_term
def test_what_stands_in_a_mask_that_is_not_annotated_does_not_matter(mode, term):
    logits, target = make_logits(mode, 0), make_target(mode, 0, 0.5)
    loss = loss_of(mode, term)
    before = loss(logits, target)[term]
    target.masks[~target.known] = 1
    target.raters = target.known.to(torch.uint8)  # nobody read them: 1 / 0
    torch.testing.assert_close(loss(logits, target)[term], before)


@every_term
@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_empty_masks_and_sure_logits_stay_finite(mode, term, scale):
    target = make_target(mode, 0)
    logits = (make_logits(mode, 0) * scale).detach().requires_grad_()
    for masks in (torch.zeros_like(target.masks), target.masks):
        target.masks = masks
        found = loss_of(mode, term)(logits, target)[term]
        (gradient,) = torch.autograd.grad(found, logits)
        assert found.isfinite()
        assert gradient.isfinite().all()


@every_term
def test_one_class_and_half_precision(mode, term):
    channels = 1 + (mode == "multiclass")
    logits = torch.randn(2, channels, 6, 6).bfloat16().requires_grad_()
    target = SegmentationTarget(torch.ones(2, 1, 6, 6, dtype=torch.uint8), torch.ones(2, 1).bool())
    found = loss_of(mode, term)(logits, target)[term]
    assert found.dtype == torch.float32
    assert found > 0
    found.backward()
    assert logits.grad.any()


@pytest.mark.parametrize(("mode", "term"), [case for case in EVERY_TERM if case[1] != "lovasz"])
def test_the_share_of_the_raters_is_the_best_answer(mode, term):
    """Also where they disagree; lovasz reads the majority, see the loops above."""
    rng = np.random.default_rng(0)
    # of 6 raters 1 or 2 see each class, and the others the background
    votes = torch.tensor(rng.integers(1, 3, (2, CLASSES, *SIZE)).astype(np.uint8))
    six = torch.full((2, CLASSES), 6, dtype=torch.uint8)
    target = SegmentationTarget(votes, torch.ones(2, CLASSES).bool(), six)
    share = target.share()
    logits = share.logit()
    if mode == "multiclass":
        share = torch.cat([1 - share.sum(dim=1, keepdim=True), share], dim=1)
        logits = share.clamp(min=1e-9).log()
    best = loss_of(mode, term)(logits.requires_grad_(), target)[term]
    if term in ("dice", "tversky"):
        assert float(best.detach()) == pytest.approx(0, abs=1e-5)
    else:
        (gradient,) = torch.autograd.grad(best, logits)
        assert gradient.abs().max() < 1e-7
    worse = loss_of(mode, term)(logits + torch.randn_like(logits), target)[term]
    assert worse > best + 1e-3


def own(mode, term):
    """smp's own loss, for masks that are all annotated by one rater."""
    gamma, tversky = OPTIONS["focal"]["gamma"], OPTIONS["tversky"]
    return {
        "dice": smp.losses.DiceLoss(mode),
        "tversky": smp.losses.TverskyLoss(mode, **tversky),
        "bce": smp.losses.SoftBCEWithLogitsLoss(),
        "ce": smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0),
        "focal": smp.losses.FocalLoss(mode, gamma=gamma)
        if mode == "multilabel"
        else lambda z, t: softmax_focal_loss_with_logits(z, t, gamma=gamma),
        "lovasz": smp.losses.LovaszLoss("multiclass")
        if mode == "multiclass"
        else lambda z, t: torch.stack(
            [smp.losses.LovaszLoss("binary")(z[:, k], t[:, k]) for k in range(CLASSES)]
        ).mean(),
    }[term]


@every_term
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_smp_where_everything_is_annotated(mode, term, seed):
    logits, target = make_logits(mode, seed), make_target(mode, seed)
    truth = target.masks.float()
    if mode == "multiclass":
        truth = (target.masks.long() * torch.tensor([1, 2, 3]).view(3, 1, 1)).sum(dim=1)
    reference = own(mode, term)(logits, truth)
    found = loss_of(mode, term)(logits, target)[term]
    torch.testing.assert_close(found, reference)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, reference))
    )


def test_in_mode_multiclass_the_last_of_overlapping_masks_wins():
    logits, target = make_logits("multiclass", 0), make_target("multiclass", 0)
    loss = MaskLoss(None, None, True, "head of task a/b")
    before = loss(logits, target)
    covered = target.masks[:, 2].bool()
    target.masks[:, 0] |= covered.to(torch.uint8)  # under the last class
    after = loss(logits, target)
    assert set(before) == {"dice", "ce"}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("losses", "options", "exclusive", "message"),
    [
        ({"jaccard": 1}, None, False, r"losses to map names of \['bce', 'dice',.*got 'jaccard'"),
        (["dice"], None, False, r"losses to map names .* but got \['dice'\]"),
        ({"bce": 1}, None, True, r"losses to map names of \['ce', .* but got 'bce'"),
        ({"dice": -1}, None, False, r"the weight losses.dice to be a number >= 0, but got -1"),
        ({"dice": "1"}, None, False, r"the weight losses.dice to be a number >= 0, but got '1'"),
        ({"dice": float("nan")}, None, False, r"the weight losses.dice to be .* but got nan"),
        ({"dice": 0}, None, False, r"one weight of losses to be > 0, but got {'dice': 0}"),
        ({}, None, False, r"one weight of losses to be > 0, but got {}"),
        (None, {"dice": {"eps": 1}}, False, r"each key of loss_args to be .*'focal'.*got 'dice'"),
        (None, {"focal": {"alpha": 1}}, False, r"loss_args.focal to set some of .*gamma"),
        (None, {"focal": {"gamma": 0.5}}, False, r"loss_args.focal.gamma to be a number >= 1"),
    ],
)
def test_wrong_losses_are_named(losses, options, exclusive, message):
    with pytest.raises(ConfigError, match="head of task a/b: expected " + message):
        MaskLoss(losses, options, exclusive, "head of task a/b")
