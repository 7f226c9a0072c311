"""JSON over HTTP: what the model says, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import struct
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from published_models import image_file as file

import ark.serving.command as serving
from ark.published.model import Model
from ark.types import ConfigError
from toys import CLASSES


def call(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, JSON (or text) and headers."""
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, body, told = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, body, told = error.code, error.read(), error.headers
    try:
        return status, json.loads(body), told
    except ValueError:
        return status, body.decode(), told


def test_it_says_what_it_serves(url: str, model: Model) -> None:
    _, told, _ = call(f"{url}/api/model")
    assert (told["name"], told["license"], told["image_size"]) == ("small", "mit", 64)
    assert told["tasks"]["toy/detection"] == {"kind": "detection", "classes": list(CLASSES)}
    assert list(told["tasks"]) == list(model.tasks)


def test_predictions_are_the_models(url: str, model: Model) -> None:
    image = file()
    status, told, _ = call(f"{url}/api/predict", image)
    assert status == 200
    expected = model([image])
    for kind, name in (("multilabel", "classes"), ("multiclass", "classes"), ("values", "values")):
        found = told["tasks"][f"toy/{kind}"][name]
        assert found == pytest.approx(
            {c: float(v[0]) for c, v in expected[f"toy/{kind}"].items()}, abs=1e-4
        )
    boxes = told["tasks"]["toy/detection"]["boxes"]
    assert len(boxes) == len(expected["toy/detection"]["boxes"][0])
    for box, other in zip(boxes, expected["toy/detection"]["boxes"][0].tolist(), strict=True):
        assert box["box"] == pytest.approx(other, abs=0.1)
        assert box["label"] in CLASSES
    masks = told["tasks"]["toy/segmentation"]["masks"]
    png = Image.open(io.BytesIO(base64.b64decode(masks["heart"])))
    assert png.size == (120, 90)
    assert np.asarray(png) / 255 == pytest.approx(
        expected["toy/segmentation"]["heart"][0].numpy(), abs=0.003
    )


def test_a_large_images_masks_are_smaller(url: str) -> None:
    task = quote("toy/segmentation")
    _, told, _ = call(f"{url}/api/predict?tasks={task}", file(300, 2048))
    assert list(told["tasks"]) == ["toy/segmentation"]
    png = base64.b64decode(told["tasks"]["toy/segmentation"]["masks"]["lung"])
    assert Image.open(io.BytesIO(png)).size == (1024, 150)


def deep() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(data, "PNG")
    return data.getvalue()


def bomb(side: int) -> bytes:
    """The head of a PNG that says it has side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head
    return start + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(
    ("path", "data", "status", "said"),
    [
        ("/api/predict", b"junk", 400, "cannot be read as an image"),
        ("/api/predict", b"", 400, "cannot be read as an image"),
        ("/api/predict", file()[:200], 400, "cannot be read as an image"),
        ("/api/predict", deep(), 400, "more than 8 bits"),
        ("/api/predict", bomb(8_000), 400, "8000 x 8000 pixels; expected at most 50,000,000"),
        ("/api/predict", bomb(20_000), 400, "expected at most 50,000,000"),
        ("/api/predict", bytes(600_000), 413, "larger than 0.5 MB"),
        ("/api/predict?tasks=none", file(), 400, "tasks: 'none'; this model has"),
    ],
)
def test_what_is_wrong_is_said_and_the_server_lives(
    url: str, path: str, data: bytes, status: int, said: str
) -> None:
    found, told, _ = call(url + path, data)
    assert found == status
    assert said in told["error"]
    assert call(f"{url}/api/predict", file())[0] == 200


def test_a_body_without_a_length_is_cut_off(url: str) -> None:
    request = urllib.request.Request(f"{url}/api/predict", method="POST")
    request.add_header("Transfer-Encoding", "chunked")
    request.data = (bytes(50_000) for _ in range(100))  # type: ignore[assignment]
    # the server closes the connection before all is sent, or has just said why
    with pytest.raises((ConnectionError, urllib.error.URLError)) as error:
        urllib.request.urlopen(request, timeout=30)
    assert getattr(error.value, "code", 413) == 413
    assert call(f"{url}/api/model")[0] == 200


def test_other_sites_get_nothing(url: str) -> None:
    """A name of another site that points here, and a page of another site."""
    assert call(f"{url}/api/model", Host="evil.example")[0] == 400
    status, _, headers = call(f"{url}/api/model", Origin="https://evil.example")
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_requests_at_once_get_their_own_answers(url: str, model: Model) -> None:
    images = [file(seed=seed) for seed in range(8)]
    address = f"{url}/api/predict?tasks=toy/values"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: call(address, image)[1], images))
    for image, told in zip(images, found, strict=True):
        expected = {n: float(v[0]) for n, v in model([image], ["toy/values"])["toy/values"].items()}
        assert told["tasks"]["toy/values"]["values"] == pytest.approx(expected, abs=1e-4)


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    _, page, _ = call(url)
    assert "medical device" in page
    for name in ("style.css", "app.js"):
        status, text, _ = call(f"{url}/page/{name}")
        assert status == 200
        assert "http" not in text.replace("httpx", "")
    assert call(f"{url}/page/../app.py")[0] == 404


def test_a_taken_port_and_wrong_limits_are_said(url: str, tmp_path, model: Model) -> None:
    folder = str(model.save_pretrained(tmp_path))
    with pytest.raises(ConfigError, match="choose another --port"):
        serving.serve(folder, port=int(url.rpartition(":")[2]))
    with pytest.raises(ConfigError, match="megabytes: 0; expected"):
        serving.serve(folder, megabytes=0)
