"""Names, sizes and frames of what goes into a published model and comes out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_models import make_network, pictures, publish

import ark
from ark.published.images import MAX_PIXELS, as_input
from ark.published.model import Model
from ark.types import BoxPrediction, ConfigError, MaskPrediction
from datamodules.transforms import Transform
from toys import CLASSES, SIZE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return ark.load(publish(tmp_path_factory.mktemp("model")))


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(height)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (80, 100), (300, 200), (40, 50)])
def test_pictures_are_seen_as_in_training(size: tuple[int, int], channels: int) -> None:
    array = picture(*size, channels)
    view = Transform("multiclass", SIZE, None)(array, None, 0, size).student
    given = as_input(array, SIZE)
    assert torch.equal(given.pixels[0], torch.from_numpy(view.transpose(2, 0, 1).copy()))
    assert given.sizes == [size]


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "LA", "RGBA", "CMYK"])
def test_files_bytes_and_pil_images_are_one(tmp_path: Path, mode: str, model: Model) -> None:
    image = Image.fromarray(picture(70, 90)).convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path)
    opened = Image.open(path)
    inputs = [as_input(i, SIZE) for i in (path, str(path), path.read_bytes(), opened, [path])]
    assert all(torch.equal(i.pixels, inputs[0].pixels) for i in inputs)
    assert inputs[0].pixels.shape == (1, 1 if mode in ("L", "1", "LA") else 3, SIZE, SIZE)


def test_gray_among_colour_is_gray() -> None:
    gray = picture(64, 64, 1)
    pixels = as_input([gray, picture(64, 64)], SIZE).pixels
    assert pixels.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(pixels[0, 0], torch.from_numpy(gray[..., 0]))
    assert torch.equal(pixels[0, 0], pixels[0, 2])


def test_tensors_of_bytes_and_of_floats_agree(model: Model) -> None:
    images = pictures()
    for key, one in model(images, ["toy/multilabel", "toy/values"]).items():
        for name, value in model(images / 255, [key])[key].items():
            torch.testing.assert_close(value, one[name])
    resized = as_input(torch.rand(2, 1, 100, 90), SIZE)
    assert resized.pixels.shape == (2, 1, SIZE, SIZE)
    assert resized.sizes == [(100, 90)] * 2


def test_every_task_has_its_names(model: Model) -> None:
    found = model(pictures())
    assert set(found) == set(model.tasks)
    for kind in ("multilabel", "multiclass", "ordinal", "values"):
        assert list(found[f"toy/{kind}"]) == list(CLASSES)
        assert all(value.shape == (2,) for value in found[f"toy/{kind}"].values())
    exclusive = torch.stack(list(found["toy/multiclass"].values())).sum(0)
    torch.testing.assert_close(exclusive, torch.ones(2))
    assert {name: mask.shape for name, mask in found["toy/segmentation"].items()} == dict.fromkeys(
        CLASSES, (2, SIZE, SIZE)
    )
    assert set(found["toy/detection"]) == {"boxes", "scores", "labels"}
    assert all(set(labels) <= set(CLASSES) for labels in found["toy/detection"]["labels"])


def test_boxes_and_masks_are_in_pixels_of_the_pictures(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [torch.tensor([[0.0, 16.0, 32.0, SIZE]])] * 2
    masks = torch.zeros(2, 3, SIZE, SIZE)
    masks[:, :, : SIZE // 2] = 1
    fixed = {
        "toy/detection": BoxPrediction(boxes, [torch.ones(1)] * 2, [torch.tensor([1])] * 2),
        "toy/segmentation": MaskPrediction(masks),
    }
    monkeypatch.setattr(model.network, "predict", lambda key, _: fixed[key])
    found = model([picture(128, 32), picture(32, 640)], list(fixed))
    assert [b.tolist() for b in found["toy/detection"]["boxes"]] == [
        [[0, 32, 16, 128]],
        [[0, 8, 320, 32]],
    ]
    assert found["toy/detection"]["labels"] == [["lung"], ["lung"]]
    for mask, size in zip(found["toy/segmentation"]["heart"], [(128, 32), (32, 640)], strict=True):
        assert mask.shape == size
        assert mask[: size[0] // 2 - 2].min() == 1
        assert mask[size[0] // 2 + 2 :].max() == 0


def test_features_have_a_gradient_and_predictions_none(model: Model) -> None:
    features = model.features(pictures())
    assert features.embedding.shape == (2, 8)
    assert features.pooled.shape == (2, model.network.backbone.pooled_width)
    assert [m.shape[1] for m in features.maps] == list(model.network.backbone.channels)
    assert features.embedding.requires_grad
    assert not model(pictures(), ["toy/values"])["toy/values"]["heart"].requires_grad


def test_a_task_computes_only_what_it_reads(model: Model, monkeypatch) -> None:
    asked = []
    whole = model.network.backbone.forward
    monkeypatch.setattr(
        model.network.backbone, "forward", lambda x, **kw: asked.append(kw) or whole(x, **kw)
    )
    model(pictures(), ["toy/multilabel"])
    assert asked == [{"maps": False, "pooled": True}]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "empty list"),
        (torch.zeros(2, 4, 8, 8), "a tensor of shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (torch.full((1, 3, 8, 8), 255.0), r"from 255 to 255; expected 0\.\.1"),
        (torch.linspace(-2, 2, 192).view(1, 3, 8, 8), r"from -2 to 2; expected 0\.\.1, not norm"),
        (torch.full((1, 3, 8, 8), float("nan")), "from nan to nan"),
        (7, "int; expected a tensor, paths"),
        ("nowhere.png", r"nowhere.png cannot be read"),
        (b"junk", "bytes cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(model: Model, images: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model(images)


def test_deep_and_huge_files_are_refused(tmp_path: Path, model: Model, monkeypatch) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep, "PNG")
    with pytest.raises(ConfigError, match="more than 8 bits"):
        model(deep.getvalue())
    monkeypatch.setattr("ark.published.images.MAX_PIXELS", 63)
    small = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(small, "PNG")
    with pytest.raises(ConfigError, match="at most 63"):
        model(small.getvalue())
    assert MAX_PIXELS > 63


def test_an_unknown_task_is_named(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"tasks: 'toy/none'; this model has \['toy/detection'"):
        model(pictures(), ["toy/none"])


def test_one_task_may_be_named_alone(tmp_path: Path) -> None:
    network = make_network("multilabel", "values")
    loaded = ark.load(publish(tmp_path, network))
    assert list(loaded(pictures(), "toy/values")) == ["toy/values"]
