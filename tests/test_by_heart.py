"""Each detector and each decoder can learn eight real X-rays by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from by_heart import eight, learn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("real_data")]
ENOUGH = 0.95  # AP50, Dice

SMALL = {"width": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "ffn": 64}
DETECTORS: dict[str, tuple[dict[str, Any], float]] = {  # detector_args, learning rate
    "atss": ({"channels": 32}, 3e-3),
    "fcos": ({"channels": 32}, 3e-3),
    "retinanet": ({"channels": 32}, 3e-3),
    "faster_rcnn": ({"channels": 32, "fc_channels": 64, "proposals": 50, "samples": 32}, 3e-3),
    "deformable_detr": ({**SMALL, "queries": 20}, 2e-3),
    "dino": ({**SMALL, "queries": 20, "denoising": 20}, 2e-3),
}
DECODERS: dict[str, tuple[dict[str, Any], float]] = {  # decoder_args, learning rate
    "Unet": ({}, 3e-3),
    "UnetPlusPlus": ({}, 3e-3),
    "UPerNet": ({}, 3e-3),
    "FPN": ({"dropout": 0}, 3e-3),
    "Segformer": ({}, 3e-3),
    "DPT": ({}, 3e-3),
    "PAN": ({}, 3e-3),
    "DeepLabV3": ({"aspp_dropout": 0}, 3e-3),
    "DeepLabV3Plus": ({"aspp_dropout": 0}, 3e-3),
    "MAnet": ({}, 1e-2),
    "Linknet": ({}, 1e-2),
    "PSPNet": ({"dropout": 0}, 1e-2),
}


def test_every_decoder_is_here() -> None:
    from heads.segmentation.decoders import DECODERS as ALL

    assert set(DECODERS) == set(ALL)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_detector_learns_lungs(detector: str, tmp_path: Path) -> None:
    args, lr = DETECTORS[detector]
    spec, batch = eight("covid_cxr", "lung_boxes", tmp_path)
    head = {
        "class_path": "heads.detection.DetectionHead",
        "init_args": {"detector": detector, "detector_args": args},
    }
    score, losses = learn(spec, batch, head, steps=240, lr=lr, wanted=ENOUGH)
    assert score >= ENOUGH, losses[::20]
    # it stops as soon as it knows: the loss of boxes that fit is far from zero then
    assert losses[-1] < 0.75 * losses[0], losses[::20]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_learns_lungs_and_heart(decoder: str, tmp_path: Path) -> None:
    args, lr = DECODERS[decoder]
    spec, batch = eight("wingspan", "organs", tmp_path)
    head = {
        "class_path": "heads.segmentation.SegmentationHead",
        "init_args": {"decoder": decoder, "decoder_args": args},
    }
    score, losses = learn(spec, batch, head, steps=120, lr=lr, wanted=ENOUGH)
    assert score >= ENOUGH, losses[::20]
    assert losses[-1] < 0.15 * losses[0], losses[::20]
