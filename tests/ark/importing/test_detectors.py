from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import pytest
import torch
from plain_dino import PlainDino

import ark
from ark.importing.command import import_model


def imported(folder: Path, content: Any, **options: Any) -> Any:
    torch.save(content, folder / "file.pth")
    options = {"image_size": foreign.SIDE, **options}
    import_model("foundation_x", str(folder / "file.pth"), str(folder / "model"), **options)
    return ark.load(folder / "model")


@pytest.mark.parametrize("plus", [False, True])
def test_detectors_find_what_a_plain_dino_finds(tmp_path: Path, plus: bool) -> None:
    content = foreign.foundation_file(plus, detectors=True)
    model = imported(tmp_path, content)
    images = torch.rand(1, 3, foreign.SIDE, foreign.SIDE)
    shared = model.network.shared
    assert list(shared) == ["detector_encoder", *(["detector_decoder"] if plus else [])]
    norm = next(m for m in shared.detector_encoder.modules() if isinstance(m, torch.nn.GroupNorm))
    for number, dataset in ((1, "node21"), (4, "chestx_det")):
        plain = PlainDino(content["teacher_model"], number, plus, norm.num_groups)
        with torch.no_grad():
            features, output = model.network.run(f"{dataset}/boxes", images)
            scores, boxes = plain(features.maps[1:])
        # the file's output 0 is of no class: COCO's ids begin at 1
        torch.testing.assert_close(output.raw.scores[-1, 0], scores[:, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.raw.boxes[-1, 0], boxes, atol=1e-4, rtol=1e-4)


def test_a_detector_that_is_not_whole_is_left_out_and_said(tmp_path: Path) -> None:
    content = foreign.foundation_file(plus=False, detectors=True)
    state = content["teacher_model"]
    del state["transformer.decoder.2.norm.weight"]
    for layer in range(foreign.LAYERS):
        for name in ("weight", "bias"):
            key = f"class_embed_.3.{layer}.{name}"
            state[key] = torch.cat([state[key]] * 7)  # "14 classes assumed for every detector"
    model = imported(tmp_path, content)
    boxes = [key for key in model.tasks if key.endswith("/boxes")]
    assert boxes == ["tbx11k/boxes", "node21/boxes", "chestx_det/boxes", "siim_acr/boxes"]
    said = list(model.facts.code["import"]["dropped"])
    assert any("candid_ptx/boxes is left out: 1 tensors are missing" in why for why in said)
    assert any("rsna_pneumonia/boxes is left out: 14 outputs for 1" in why for why in said)
    del state["transformer.level_embed"]
    model = imported(tmp_path, content, overwrite=True)
    assert not any(key.endswith("/boxes") for key in model.tasks)
    assert not list(model.network.shared)
    total = model.facts.code["import"]["used"]
    dropped = model.facts.code["import"]["dropped"].values()
    assert total + sum(group["count"] for group in dropped) == len(state)
