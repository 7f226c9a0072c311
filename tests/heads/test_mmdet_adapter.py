import importlib
import importlib.machinery
import logging
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from ark.types import ConfigError
from heads.detection import mmdet_adapter
from heads.detection.mmdet_adapter import init_weights, mmdet_models, nms


@pytest.fixture(scope="module")
def models():
    return mmdet_models()


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def brute_force_nms(boxes, scores, threshold, offset):
    kept = []
    for n in scores.argsort(descending=True).tolist():
        x1, y1, x2, y2 = boxes[n].tolist()
        for m in kept:
            u1, v1, u2, v2 = boxes[m].tolist()
            width = max(0.0, min(x2, u2) - max(x1, u1) + offset)
            height = max(0.0, min(y2, v2) - max(y1, v1) + offset)
            areas = [(c - a + offset) * (d - b + offset) for a, b, c, d in (boxes[n], boxes[m])]
            if width * height / (sum(areas) - width * height) > threshold:
                break
        else:
            kept.append(n)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
def test_nms_equals_brute_force(threshold, offset):
    generator = torch.Generator().manual_seed(7)
    for count in (1, 5, 40):
        boxes, scores = random_boxes(count, generator), torch.rand(count, generator=generator)
        assert nms(boxes, scores, threshold, offset).tolist() == brute_force_nms(
            boxes, scores, threshold, offset
        )


def test_nms_offset_changes_which_boxes_overlap():
    # 2 px wide boxes shifted by 1: IoU 1/3 without the offset, 2/4 with it (height likewise full)
    boxes = torch.tensor([[0.0, 0, 2, 9], [1.0, 0, 3, 9]])
    scores = torch.tensor([0.9, 0.8])
    assert len(nms(boxes, scores, 0.4, offset=0)) == 2
    assert len(nms(boxes, scores, 0.4, offset=1)) == 1


def test_mmcv_nms_runs_on_the_stand_in(models):
    from mmcv.ops import nms as mmcv_nms

    generator = torch.Generator().manual_seed(1)
    boxes, scores = random_boxes(30, generator), torch.rand(30, generator=generator)
    found, index = mmcv_nms(boxes, scores, 0.5, score_threshold=0.2, max_num=5)
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    expected = expected[scores[expected] > 0.2][:5]
    assert index.tolist() == expected.tolist()
    assert torch.equal(found[:, 4], scores[expected])


def test_missing_operator_names_itself_and_the_remedy(models):
    from mmcv.ops import ModulatedDeformConv2d

    layer = ModulatedDeformConv2d(3, 4, 3, padding=1)
    image, offset, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 18, 8, 8), torch.ones(1, 9, 8, 8)
    with pytest.raises(ConfigError, match=r"'modulated_deform_conv_forward'.*mmcv==2\.1\.0"):
        layer(image, offset, mask)


def test_roi_align_is_torchvisions(models):
    from mmcv.ops import RoIAlign

    maps, rois = torch.randn(1, 2, 16, 16), torch.tensor([[0.0, 2, 2, 11, 9]])
    expected = torchvision.ops.roi_align(maps, rois, (3, 3), 1.0, 0, True)
    assert torch.equal(RoIAlign(output_size=3)(maps, rois), expected)


def test_deformable_attention_takes_the_plain_path(models):
    from mmcv.ops import multi_scale_deform_attn

    assert multi_scale_deform_attn.IS_CUDA_AVAILABLE is False


def test_focal_loss_of_the_cuda_branch(models):
    """The function that mmdet calls on CUDA: equal to its CPU branch and to the formula."""
    from mmdet.models.losses import focal_loss

    logits = torch.randn(12, 3, requires_grad=True)
    target = torch.randint(0, 4, (12,))  # 3 is the background
    weight = torch.rand(12)
    cuda_branch = focal_loss.sigmoid_focal_loss(logits, target, weight, 2.0, 0.25, "mean", 5.0)
    module = models.build({"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25})
    cpu_branch = module(logits, target, weight, avg_factor=5.0)
    one_hot = nn.functional.one_hot(target, 4)[:, :3].float()
    each = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(cuda_branch, cpu_branch)
    torch.testing.assert_close(cuda_branch, (each * weight[:, None]).sum() / 5.0)
    assert torch.autograd.grad(cuda_branch, logits)[0].abs().sum() > 0


@pytest.fixture
def operators(models):
    """mmcv's compiled operators."""
    extension = importlib.import_module("mmcv._ext")
    if isinstance(extension, mmdet_adapter._StandInExtension):
        pytest.skip("mmcv is not compiled here: mmcv-lite")
    return extension


@pytest.mark.parametrize("offset", [0, 1])
def test_compiled_nms_gives_the_same(operators, offset):
    generator = torch.Generator().manual_seed(7)
    boxes, scores = random_boxes(60, generator), torch.rand(60, generator=generator)
    found = operators.nms(boxes, scores, iou_threshold=0.4, offset=offset)
    assert found.tolist() == nms(boxes, scores, 0.4, offset).tolist()


def test_compiled_roi_align_gives_the_same(operators):
    from mmcv.ops import RoIAlign

    maps, rois = torch.randn(1, 2, 16, 16), torch.tensor([[0.0, 2, 2, 11, 9]])
    one, other = (RoIAlign(output_size=3, use_torchvision=plain) for plain in (True, False))
    torch.testing.assert_close(one(maps, rois), other(maps, rois))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="these operators are for GPUs")
def test_compiled_gpu_operators_give_the_same(operators):
    from mmcv.ops import multi_scale_deform_attn as attention
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    torch.manual_seed(0)
    shapes, starts = torch.tensor([[6, 6], [3, 3]]).cuda(), torch.tensor([0, 36]).cuda()
    value, places = torch.randn(2, 45, 4, 8).cuda(), torch.rand(2, 7, 4, 2, 3, 2).cuda()
    weights = torch.rand(2, 7, 4, 2, 3).cuda()
    plain = attention.multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    apply = attention.MultiScaleDeformableAttnFunction.apply
    compiled = apply(value, shapes, starts, places, weights, 64)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    logits, target = torch.randn(12, 3).cuda(), torch.randint(0, 4, (12,)).cuda()
    one_hot = nn.functional.one_hot(target, 4)[:, :3]
    compiled = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")
    plain = py_sigmoid_focal_loss(logits, one_hot, None, 2.0, 0.25, "sum")
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_init_weights_is_quiet_and_restores_the_level(models, monkeypatch):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    neck = models.build({"type": "FPN", "in_channels": [4, 8], "out_channels": 8, "num_outs": 2})
    records = []
    monkeypatch.setattr(logger, "callHandlers", records.append)
    before = neck.lateral_convs[0].conv.weight.clone()
    init_weights(neck)
    assert not torch.equal(before, neck.lateral_convs[0].conv.weight)
    assert logger.level == level
    assert records == []
    neck.init_weights()
    assert records  # what it would have said


def test_a_compiled_mmcv_is_left_alone(models, monkeypatch, caplog):
    spec = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
    monkeypatch.setattr(mmdet_adapter.importlib.util, "find_spec", lambda name: spec)
    for replacing in ("_stand_in", "_use_python_focal_loss"):
        monkeypatch.setattr(mmdet_adapter, replacing, lambda: pytest.fail("replaced"))
    with caplog.at_level(logging.INFO, logger="ark"):
        assert mmdet_models.__wrapped__() is models
    assert "mmcv's compiled ones" in caplog.text


def test_missing_mmdet_says_what_to_install(monkeypatch):
    def find_spec(name):
        raise ModuleNotFoundError(name="mmcv")

    monkeypatch.setattr(mmdet_adapter.importlib.util, "find_spec", find_spec)
    with pytest.raises(ConfigError, match="'mmcv' is not installed; run `pip install mmdet"):
        mmdet_models.__wrapped__()


def test_importing_the_head_imports_neither_mmdet_nor_the_training_stack():
    code = (
        "import sys, heads.detection; "
        "print([m for m in ('mmdet', 'mmcv', 'mmengine', 'torchmetrics', 'lightning', 'matplotlib',"
        " 'pytorch_lightning', 'webdataset', 'albumentations', 'wandb') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
