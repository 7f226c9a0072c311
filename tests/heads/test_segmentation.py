"""SegmentationHead: shapes, modes, sharing, guidance, pictures and wrong arguments.

The decoders are in test_decoders.py, the losses against numpy in test_mask_losses.py.
"""

import copy
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from pyramids import CONVOLUTIONAL, TASK, TRANSFORMER, make_features
from safetensors.torch import save_file

from ark.network import Network
from ark.types import (
    BoxPrediction,
    ConfigError,
    MaskPrediction,
    SegmentationTarget,
    TaskSpec,
)
from heads.segmentation import SegmentationHead, SegmentationOutput

UNET = {"decoder": "Unet"}


def make_head(info=CONVOLUTIONAL, task=TASK, **init_args):
    torch.manual_seed(0)
    return SegmentationHead(task, info, **init_args)


def make_target(batch=2, size=(64, 64), known=None):
    masks = (torch.rand(batch, 3, *size) < 0.3).to(torch.uint8)
    return SegmentationTarget(masks, torch.ones(batch, 3).bool() if known is None else known)


def test_a_weight_scales_its_term_and_zero_drops_it():
    logits, target = torch.randn(2, 3, 64, 64), make_target()
    output = SegmentationOutput(logits, logits)
    once = make_head().loss(output, target)
    assert set(once) == {"dice", "bce"}
    other = make_head(losses={"dice": 2.0, "bce": 0}).loss(output, target)
    assert set(other) == {"dice"}
    torch.testing.assert_close(other["dice"], 2 * once["dice"])


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
    names = ["backbone", "pyramid", "decoder"]
    found = head.consistency(features, head(features), names)
    levels = [f"pyramid/{n}" for n in range(5)]
    assert list(found) == ["backbone", *levels, "decoder"]
    for tensor in found.values():
        torch.testing.assert_close(tensor.norm(dim=1), torch.ones_like(tensor[:, 0]))
    assert [found[name].shape[1] for name in levels] == list(CONVOLUTIONAL.channels)


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        ({"decoder": "UNet"}, r"expected decoder to be one of .*'Unet'.* 'UNet'"),
        ({"norm": "layer"}, r"expected norm to be one of .*'group'.*'layer'"),
        ({"mode": "softmax"}, r"expected mode to be one of .*'multiclass'.*'softmax'"),
        ({"mode": "binary"}, r"mode binary expects one class.*'heart'.*multilabel"),
        ({"shared": "the decoder"}, r"shared is 'the decoder'; expected a name"),
        ({"losses": {"bce": -1}}, r"losses.bce to be a number >= 0, but got -1"),
        ({"losses": {"ce": 1}}, r"expected losses to map names of .*'bce'.* but got 'ce'"),
        ({"losses": {"bce": 1}, "mode": "multiclass"}, r"names of \['ce'.* but got 'bce'"),
        ({"guide": "boxes", "guide_score": 30}, r"expected guide_score in \[0, 1\), but got 30"),
        ({"loss_args": {"dice": {"gamma": 2}}}, r"loss_args to be one of .*'focal'.*'dice'"),
    ],
)
def test_bad_configurations_are_named(init_args, message):
    with pytest.raises(ConfigError, match=r"chestxdet/masks.*" + message):
        make_head(**init_args)


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


@pytest.mark.parametrize("decoder", ["UPerNet", "DeepLabV3"])
def test_batch_norm_that_cannot_train_on_one_image_says_so(decoder):
    head, features = make_head(decoder=decoder, norm="batch"), make_features(CONVOLUTIONAL, batch=1)
    with pytest.raises(ConfigError, match=r"chestxdet/masks.* batch of 1.*set norm: group"):
        head.train()(features)
    assert head.eval()(features).logits.isfinite().all()


def test_binary_is_multilabel_of_one_class():
    task = TaskSpec("toy", "masks", "segmentation", ("lung",))
    first, second = (make_head(task=task, mode=m).eval() for m in ("binary", "multilabel"))
    features = make_features(CONVOLUTIONAL)
    torch.testing.assert_close(first(features).logits, second(features).logits)


@torch.no_grad()
def test_multiclass_gives_probabilities_that_leave_room_for_the_background():
    head, features = make_head(mode="multiclass"), make_features(CONVOLUTIONAL)
    output = head.eval()(features)
    assert output.logits.shape == (2, 4, 64, 64)
    masks = head.predict(output).probabilities
    expected = torch.softmax(output.logits, dim=1)
    torch.testing.assert_close(masks, expected[:, 1:])
    torch.testing.assert_close(1 - masks.sum(dim=1), expected[:, 0])
    assert head.metrics().exclusive


def network_of(*init_args):
    """A small network with one segmentation task for each set of arguments."""
    torch.manual_seed(0)
    head = "heads.segmentation.SegmentationHead"
    tasks = [
        TaskSpec(f"set{n}", "masks", "segmentation", ("a", "b")[: n + 1], {"class_path": head})
        for n in range(len(init_args))
    ]
    for task, args in zip(tasks, init_args, strict=True):
        task.head["init_args"] = args
    return Network({"name": "test_efficientnet", "image_size": 64}, None, tasks)


def test_a_shared_decoder_is_there_once_and_learns_from_either_task(tmp_path):
    args = {"decoder": "UPerNet", "shared": "masks", "decoder_args": {"decoder_channels": 16}}
    network = network_of(args, args)
    first, second = network.head("set0/masks"), network.head("set1/masks")
    assert first.shared("masks") is second.shared("masks") is network.shared["masks"]
    assert {name.split(".")[0] for name, _ in first.named_parameters()} == {"classifier"}
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert any(name.startswith("shared.masks.") for name in state)
    save_file(state, tmp_path / "weights.safetensors")  # refuses tensors that share memory

    images = torch.rand(2, 3, 64, 64)
    for key, head in network.heads_by_key().items():
        network.zero_grad()
        target = SegmentationTarget(
            torch.ones(2, len(head.task.classes), 64, 64, dtype=torch.uint8),
            torch.ones(2, len(head.task.classes)).bool(),
        )
        sum(head.loss(network.run(key, images)[1], target).values()).backward()
        assert all(p.grad is not None for p in network.shared["masks"].parameters())
        assert any(p.grad.any() for p in network.shared["masks"].parameters())
        others = [h for other, h in network.heads_by_key().items() if other != key]
        assert all(p.grad is None for other in others for p in other.parameters())

    twin = copy.deepcopy(network)
    assert twin.head("set0/masks").shared("masks") is twin.shared["masks"]
    assert twin.shared["masks"] is not network.shared["masks"]
    with torch.no_grad():
        next(twin.shared["masks"].parameters()).add_(1)
    before, after = (n.eval().predict("set1/masks", images).probabilities for n in (network, twin))
    assert not torch.equal(before, after)


def test_tasks_that_share_must_ask_for_the_same_decoder():
    with pytest.raises(ConfigError, match=r"set1/masks.*shared part 'masks'.*Unet.*FPN"):
        network_of({"decoder": "Unet", "shared": "masks"}, {"decoder": "FPN", "shared": "masks"})


def test_a_guide_fades_the_features_and_gets_no_gradient():
    head = make_head(guide="boxes", **UNET).eval()
    assert head.guide == "boxes"
    features = make_features(CONVOLUTIONAL)
    with pytest.raises(ValueError, match=r"reads the boxes of 'boxes'.*regions is None"):
        head(features)
    boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0]], requires_grad=True)
    features.regions = BoxPrediction(
        [boxes, torch.zeros(0, 4)],
        [torch.tensor([0.9]), torch.zeros(0)],
        [torch.zeros(n, dtype=torch.int64) for n in (1, 0)],
    )
    guided = head(features).logits
    plain = make_head(**UNET).eval()(features).logits
    assert not torch.allclose(guided[0], plain[0])
    torch.testing.assert_close(guided[1], plain[1])  # nothing found: nothing fades
    guided.square().sum().backward()
    assert boxes.grad is None
    assert all(m.grad.abs().sum() > 0 for m in features.maps)
    unsure = make_head(guide="boxes", guide_score=0.95, **UNET).eval()(features).logits
    torch.testing.assert_close(unsure, plain)


def picture(head, shown, truth):
    """What one call draws: the axes and all words in them."""
    figure = Figure()
    axes = figure.subplots()
    head.draw(axes, torch.zeros(3, 64, 64, dtype=torch.uint8), shown, 0, truth=truth)
    figure.canvas.draw()
    return axes, " ".join(text.get_text() for text in axes.findobj(Text))


def test_pictures_tell_truth_from_prediction_and_name_what_is_missing():
    masks = torch.zeros(1, 3, 64, 64)
    masks[:, :2, 8:40, 8:40] = 1
    target = SegmentationTarget(masks.to(torch.uint8), torch.tensor([[True, False, True]]))
    axes, words = picture(make_head(), target, truth=True)
    assert "not annotated: heart" in words
    broken = [line.get_linestyle() for line in axes.collections]
    axes, words = picture(make_head(), MaskPrediction(masks), truth=False)
    assert "not annotated" not in words
    assert [line.get_linestyle() for line in axes.collections] != broken


def test_pictures_tint_by_the_share_of_the_raters():
    masks = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    masks[0, 0, :32], masks[0, 0, :16] = 1, 3
    target = SegmentationTarget(
        masks, torch.ones(1, 3).bool(), torch.full((1, 3), 3, dtype=torch.uint8)
    )
    axes, _ = picture(make_head(), target, truth=True)
    tint = axes.images[1].get_array()[..., 3]
    assert tint[0, 0] == pytest.approx(3 * tint[20, 0])
    assert tint[40, 0] == 0


def test_pictures_of_exclusive_classes_show_one_class_a_pixel():
    probabilities = torch.zeros(1, 3, 64, 64)
    probabilities[0, :, :32] = torch.tensor([0.4, 0.3, 0.1])[:, None, None]  # background 0.2
    probabilities[0, :, 32:] = torch.tensor([0.2, 0.3, 0.1])[:, None, None]  # background 0.4
    prediction = MaskPrediction(probabilities, exclusive=True)
    axes, words = picture(make_head(mode="multiclass"), prediction, truth=False)
    assert "lung" in words
    assert "heart" not in words
    shown = np.asarray(axes.images[1].get_array()[..., 3])
    assert shown[:32].all()
    assert not shown[32:].any()
