"""Every decoder on every pyramid; the same numbers as segmentation-models-pytorch's own models."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from pyramids import CONVOLUTIONAL, TASK, TRANSFORMER, make_features
from torch import nn

from ark.types import ConfigError, FeatureInfo, SegmentationTarget
from heads.segmentation import SegmentationHead
from heads.segmentation.decoders import DECODERS

COARSE = FeatureInfo((8, 8), (8, 16), 8, 8, image_size=64)
READ_ONLY_THE_COARSEST = ("PSPNet", "DeepLabV3")


def make_head(info=CONVOLUTIONAL, **init_args):
    torch.manual_seed(0)
    return SegmentationHead(TASK, info, **init_args)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("info", [CONVOLUTIONAL, TRANSFORMER], ids=["stride2", "stride4"])
@pytest.mark.parametrize("rounding", [math.ceil, math.floor])
@pytest.mark.parametrize("size", [(64, 64), (50, 75)], ids=str)
def test_every_decoder_takes_every_pyramid_and_size(decoder, info, rounding, size):
    head, features = make_head(info, decoder=decoder), make_features(info, size, 1, rounding)
    output = head.train()(features)
    assert head.predict(output).probabilities.shape == (1, 3, *size)
    target = SegmentationTarget(
        (torch.rand(1, 3, *size) < 0.3).to(torch.uint8), torch.ones(1, 3).bool()
    )
    sum(head.loss(output, target).values()).backward()
    read = features.maps[-1:] if decoder in READ_ONLY_THE_COARSEST else features.maps[-4:]
    if decoder == "DeepLabV3Plus":
        read = [features.maps[-1], features.maps[-4]]
    assert all(m.grad.isfinite().all() and m.grad.any() for m in read)
    assert all(p.grad is not None for p in head.parameters()), "DDP waits for idle parameters"


def test_every_decoder_of_smp_is_here():
    assert set(DECODERS) == {model.__name__ for model in smp._MODEL_ARCHITECTURES}


@pytest.mark.parametrize("decoder", DECODERS)
def test_group_norm_makes_training_and_evaluation_alike_and_batch_norm_can_be_kept(decoder):
    torch.manual_seed(0)
    features = make_features(CONVOLUTIONAL)
    head = make_head(decoder=decoder)
    for module in head.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0
    torch.testing.assert_close(head.train()(features).logits, head.eval()(features).logits)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    kept = make_head(decoder=decoder, norm="batch")
    by_batch = any(isinstance(m, nn.BatchNorm2d) for m in kept.modules())
    alike = torch.equal(kept.train()(features).logits, kept.eval()(features).logits)
    assert by_batch == (decoder != "FPN")  # which smp normalises by groups itself
    assert not alike


def test_decoder_args_reach_the_decoder():
    head = make_head(decoder="Unet", decoder_args={"decoder_channels": [24, 8]})
    assert head(make_features(CONVOLUTIONAL)).decoded.shape == (2, 8, 8, 8)
    coarse = make_head(decoder="PSPNet", decoder_args={"output_stride": 16})
    assert coarse(make_features(CONVOLUTIONAL)).decoded.shape == (2, 64, 4, 4)


class Given(nn.Module):
    """Stands for an encoder of smp: whatever the image, these features."""

    output_stride = 32

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, image):
        return list(self.features)


ENCODER = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
# smp's own names of what Ark sets, and the stride that smp's dilated encoder ends at
PARITY = {
    "Unet": ({"decoder_channels": (24, 16, 16, 8, 8)}, {"decoder_channels": (24, 16, 16, 8, 8)}),
    "UnetPlusPlus": (
        {"decoder_channels": (24, 16, 16, 8, 8)},
        {"decoder_channels": (24, 16, 16, 8, 8)},
    ),
    "MAnet": ({"decoder_channels": (24, 16, 16, 8, 8)}, {"decoder_channels": (24, 16, 16, 8, 8)}),
    "Linknet": ({}, {}),
    "FPN": (
        {"pyramid_channels": 32, "segmentation_channels": 32},
        {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32, "upsampling": 1},
    ),
    "UPerNet": ({"decoder_channels": 32}, {"decoder_channels": 32, "upsampling": 1}),
    "Segformer": (
        {"segmentation_channels": 32},
        {"decoder_segmentation_channels": 32, "upsampling": 1},
    ),
    "PAN": ({"decoder_channels": 16}, {"decoder_channels": 16, "upsampling": 1}),
    "PSPNet": (
        {"out_channels": 32, "output_stride": 32},
        {"psp_out_channels": 32, "encoder_depth": 5, "upsampling": 1},
    ),
    "DeepLabV3": (
        {"out_channels": 32},
        {"decoder_channels": 32, "encoder_output_stride": 8, "upsampling": 1},
    ),
    "DeepLabV3Plus": (
        {"out_channels": 32},
        {"decoder_channels": 32, "encoder_output_stride": 16, "upsampling": 1},
    ),
}
ENDS_AT = {"DeepLabV3": 8, "DeepLabV3Plus": 16, "PAN": 16}


@torch.no_grad()
@pytest.mark.parametrize("decoder", PARITY)
def test_the_logits_of_smp_with_the_same_weights(decoder):
    """Before the last upsampling, where smp aligns corners and Ark lays cells over their pixels."""
    ours, theirs = PARITY[decoder]
    torch.manual_seed(0)
    model = getattr(smp, decoder)(**ENCODER, **theirs).eval()
    image = torch.randn(2, 3, 256, 256)
    info = FeatureInfo((64, 64, 128, 256, 512), (2, 4, 8, 16, 32), 512, 512, image_size=256)
    features = make_features(info, (256, 256))
    last = features.maps[-1]
    if (stride := ENDS_AT.get(decoder, 32)) < 32:
        last = F.interpolate(last, scale_factor=32 // stride, mode="bilinear")
    model.encoder = Given([image, *features.maps[:-1], last])

    head = make_head(info, decoder=decoder, decoder_args=ours, norm="batch").eval()
    head.decoder.load_state_dict(model.decoder.state_dict())
    kernel = model.segmentation_head[0].weight
    margin = (3 - kernel.shape[-1]) // 2  # some of smp's last convolutions are 1 x 1
    head.classifier.weight.copy_(F.pad(kernel, [margin] * 4))
    head.classifier.bias.copy_(model.segmentation_head[0].bias)

    output = head(features)
    expected = model(image)
    found = head.classifier(output.decoded)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if expected.shape[2:] == (256, 256):
        torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_dpt_is_smps_decoder_on_maps_of_strides_4_to_32():
    head, features = make_head(TRANSFORMER, decoder="DPT", norm="batch"), make_features(TRANSFORMER)
    own = smp.decoders.dpt.decoder.DPTDecoder(
        encoder_out_channels=TRANSFORMER.channels,
        encoder_output_strides=TRANSFORMER.strides,
        encoder_has_prefix_tokens=False,
        readout="ignore",
        intermediate_channels=(64,) * 4,
        fusion_channels=64,
    )
    own.load_state_dict(head.decoder.state_dict())
    expected = own.eval()(features.maps, [None] * 4)
    torch.testing.assert_close(head.eval()(features).decoded, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("info", "init_args", "message"),
    [
        (
            CONVOLUTIONAL,
            {"decoder": "Unet", "decoder_args": {"width": 3}},
            r"decoder_args of Unet.*decoder_channels.*'width'",
        ),
        (
            CONVOLUTIONAL,
            {"decoder": "Unet", "decoder_args": {"decoder_channels": 64}},
            r"list 1 to 5 widths.*64",
        ),
        (
            CONVOLUTIONAL,
            {"decoder": "MAnet", "decoder_args": {"decoder_channels": []}},
            r"list 1 to 5 widths",
        ),
        (
            TRANSFORMER,
            {"decoder": "UnetPlusPlus", "decoder_args": {"decoder_channels": [8] * 6}},
            r"list 1 to 5 widths",
        ),
        (
            CONVOLUTIONAL,
            {"decoder": "FPN", "decoder_args": {"segmentation_channels": 40}},
            r"decoder FPN does not take .*40.*divisible",
        ),
        (
            CONVOLUTIONAL,
            {"decoder": "DeepLabV3Plus", "decoder_args": {"output_stride": 32}},
            r"decoder DeepLabV3Plus does not take .*32.*one of \(8, 16\)",
        ),
        (
            FeatureInfo((6,) * 4, (4, 8, 16, 32), 6, 6, 64),
            {"decoder": "PSPNet"},
            r"PSPNet does not",
        ),
        (
            FeatureInfo((6,) * 6, (2, 4, 8, 16, 32, 64), 6, 6, 64),
            {"decoder": "PAN"},
            r"PAN does not take .*no map beyond stride 32",
        ),
        (FeatureInfo((8, 8), (16, 16), 8, 8, 64), {}, r"strides \(16, 16\).*twice"),
        (FeatureInfo((8, 8), (3, 6), 8, 8, 64), {}, r"strides \(3, 6\).*powers of 2"),
        (COARSE, {"decoder": "FPN"}, r"FPN needs maps.*one of \['Unet', .*another backbone"),
        (COARSE, {"decoder": "DeepLabV3Plus"}, r"DeepLabV3Plus needs maps.*'DeepLabV3'\]"),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(info, init_args, message):
    with pytest.raises(ConfigError, match=r"chestxdet/masks.*" + message):
        make_head(info, **init_args)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["Unet", "MAnet", "Linknet", "PSPNet", "DeepLabV3"])
def test_decoders_that_need_only_the_coarsest_map_take_a_coarse_pyramid(decoder):
    output = make_head(COARSE, decoder=decoder).eval()(make_features(COARSE))
    assert output.logits.shape == (2, 3, 64, 64)
