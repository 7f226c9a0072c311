"""SegmentationHead against plain formulas, on every decoder and odd image sizes."""

import math

import pytest
import torch

from ark.types import ConfigError, FeatureInfo, Features, SegmentationTarget, TaskSpec
from heads.segmentation import DECODERS, SegmentationHead, SegmentationOutput

CONVOLUTIONAL = FeatureInfo((4, 6, 8, 12, 16), (2, 4, 8, 16, 32), 16, 16, image_size=64)
TRANSFORMER = FeatureInfo((6, 8, 12, 16), (4, 8, 16, 32), 16, 16, image_size=64)
TASK = TaskSpec("chestxdet", "masks", "segmentation", ("lung", "heart", "clavicle"))

UNET = {"decoder": "Unet"}


def make_head(info=CONVOLUTIONAL, task=TASK, **init_args):
    torch.manual_seed(0)
    return SegmentationHead(task, info, **init_args)


def make_features(info, size=(64, 64), batch=2, rounding=math.ceil):
    maps = [
        torch.randn(batch, c, *(max(1, rounding(side / s)) for side in size), requires_grad=True)
        for c, s in zip(info.channels, info.strides, strict=True)
    ]
    return Features(maps, None, None, size)


def make_target(batch=2, size=(64, 64), known=None):
    masks = (torch.rand(batch, 3, *size) < 0.3).to(torch.uint8)
    return SegmentationTarget(masks, torch.ones(batch, 3).bool() if known is None else known)


def dice_by_loops(logits, target):
    """1 - Dice of the annotated pixels of the batch, a class without any positive counting 0."""
    terms = []
    for k in range(logits.shape[1]):
        rows = target.known[:, k]
        p, t = logits[rows, k].sigmoid(), target.masks[rows, k].float()
        if rows.any():
            terms.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()) if t.any() else 0 * p.sum())
    return sum(terms) / len(terms) if terms else torch.tensor(0.0)


def bce_by_loops(logits, target):
    terms = [
        torch.nn.functional.softplus(logits[n, k]) - logits[n, k] * target.masks[n, k]
        for n, k in target.known.nonzero().tolist()
    ]
    return torch.stack(terms).mean() if terms else torch.tensor(0.0)


@pytest.mark.parametrize("known_rate", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_plain_loops_over_what_is_annotated(seed, known_rate):
    torch.manual_seed(seed)
    logits = torch.randn(4, 3, 8, 6, requires_grad=True)
    known = torch.rand(4, 3) < known_rate
    target = SegmentationTarget((torch.rand(4, 3, 8, 6) < 0.3).to(torch.uint8), known)
    target.masks[:, 1] = 0
    terms = make_head().loss(SegmentationOutput(logits, logits), target)
    torch.testing.assert_close(terms["dice"], dice_by_loops(logits, target))
    torch.testing.assert_close(terms["bce"], bce_by_loops(logits, target))
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient.abs().sum(dim=(2, 3)) > 0, known)  # not annotated: no gradient


def test_a_weight_scales_its_term_and_zero_drops_it():
    logits, target = torch.randn(2, 3, 64, 64), make_target()
    output = SegmentationOutput(logits, logits)
    once = make_head().loss(output, target)
    other = make_head(dice_weight=2.0, bce_weight=0).loss(output, target)
    assert set(other) == {"dice"}
    torch.testing.assert_close(other["dice"], 2 * once["dice"])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("info", [CONVOLUTIONAL, TRANSFORMER], ids=["stride2", "stride4"])
@pytest.mark.parametrize("rounding", [math.ceil, math.floor])
@pytest.mark.parametrize("size", [(64, 64), (50, 75)], ids=str)
def test_every_decoder_takes_every_pyramid_and_size(decoder, info, rounding, size):
    head, features = make_head(info, decoder=decoder), make_features(info, size, 1, rounding)
    output = head(features)
    assert head.predict(output).probabilities.shape == (1, 3, *size)
    sum(head.loss(output, make_target(1, size)).values()).backward()
    assert all(m.grad.isfinite().all() for m in features.maps[-4:])
    assert all(p.grad is not None for p in head.parameters()), "DDP waits for idle parameters"


@torch.no_grad()
@pytest.mark.parametrize("rounding", [math.ceil, math.floor])
def test_padding_keeps_cells_over_their_pixels(rounding):
    """A cell that lights up must light up the pixels that it covers, at any image size."""
    head = make_head(TRANSFORMER, decoder="FPN").eval()
    centres = []
    for size in ((128, 128), (100, 123)):
        features = make_features(TRANSFORMER, size, 1, rounding)
        for m in features.maps:
            m.data.zero_()
        dark = head(features).logits
        features.maps[0].data[:, :, 9, 12] = 50.0  # over pixels 36-40 down and 48-52 across
        change = (head(features).logits - dark).abs().sum(dim=(0, 1))
        change = change * (change > 0.2 * change.max())
        rows, columns = change.sum(dim=1), change.sum(dim=0)
        centre = [float((x * torch.arange(len(x))).sum() / x.sum()) for x in (rows, columns)]
        centres.append(centre)
    assert centres[0] == pytest.approx([37.5, 49.5], abs=2)
    assert centres[1] == pytest.approx(centres[0], abs=0.5)


def test_consistency_vectors_have_length_one_in_every_cell():
    head, features = make_head(), make_features(CONVOLUTIONAL)
    for tensor in head.consistency(features, head(features)).values():
        torch.testing.assert_close(tensor.norm(dim=1), torch.ones_like(tensor[:, 0]))


def test_group_norm_makes_training_and_evaluation_alike_and_batch_norm_can_be_kept():
    features = make_features(CONVOLUTIONAL)
    head = make_head(**UNET)  # smp's FPN also drops channels in training
    assert torch.equal(head.train()(features).logits, head.eval()(features).logits)
    kept = make_head(**UNET, norm="batch")
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in kept.modules())
    assert not torch.equal(kept.train()(features).logits, kept.eval()(features).logits)


def test_decoder_args_reach_the_decoder():
    head = make_head(**UNET, decoder_args={"decoder_channels": [24, 8]})
    assert head(make_features(CONVOLUTIONAL)).decoded.shape == (2, 8, 8, 8)


@pytest.mark.parametrize(
    ("info", "init_args", "message"),
    [
        (CONVOLUTIONAL, {"decoder": "UNet"}, r"expected decoder to be one of .*'Unet'.* 'UNet'"),
        (CONVOLUTIONAL, {"norm": "layer"}, r"expected norm to be one of .*'group'.*'layer'"),
        (
            CONVOLUTIONAL,
            UNET | {"decoder_args": {"width": 3}},
            r"decoder_args.*decoder_channels.*'width'",
        ),
        (
            CONVOLUTIONAL,
            UNET | {"decoder_args": {"decoder_channels": 64}},
            r"list 1 to 5 widths.*64",
        ),
        (CONVOLUTIONAL, UNET | {"decoder_args": {"decoder_channels": []}}, r"list 1 to 5 widths"),
        (
            TRANSFORMER,
            UNET | {"decoder_args": {"decoder_channels": [8] * 6}},
            r"list 1 to 5 widths",
        ),
        (
            CONVOLUTIONAL,
            {"decoder": "FPN", "decoder_args": {"segmentation_channels": 40}},
            r"decoder FPN does not take .*40.*divisible",
        ),
        (CONVOLUTIONAL, {"dice_weight": -1}, r"dice_weight and bce_weight >= 0"),
        (CONVOLUTIONAL, {"dice_weight": 0, "bce_weight": 0}, r"one of them > 0"),
        (FeatureInfo((8, 8), (16, 16), 8, 8, 64), {}, r"strides \(16, 16\).*twice"),
        (FeatureInfo((8, 8), (8, 16), 8, 8, 64), {"decoder": "FPN"}, r"FPN needs maps.*Unet"),
    ],
)
def test_bad_configurations_are_named(info, init_args, message):
    with pytest.raises(ConfigError, match=r"chestxdet/masks.*" + message):
        make_head(info, **init_args)


def test_it_learns_a_square_in_a_few_steps():
    """All parts together: the mask must end up where the features say, not flipped or shifted."""
    task = TaskSpec("toy", "masks", "segmentation", ("square",))
    head, features = make_head(CONVOLUTIONAL, task), make_features(CONVOLUTIONAL, batch=1)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    masks[..., 8:40, 16:36] = 1
    target = SegmentationTarget(masks, torch.ones(1, 1).bool())
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        sum(head.loss(head(features), target).values()).backward()
        optimiser.step()
    metric = head.metrics()
    metric.update(head.predict_features(features), target)
    assert metric.compute()["dice"] > 0.9
