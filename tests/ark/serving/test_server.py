"""JSON over HTTP: what the model says, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import resource
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageOps
from published_models import image_file as file
from pydicom.data import get_testdata_file

import ark.serving.command as serving
from ark.network import Network
from ark.published.config import Facts
from ark.published.model import Model
from ark.serving.app import PAGE, Limits
from ark.serving.reading import read
from ark.types import ConfigError, TaskSpec
from datamodules.imaging.images import decode_image
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
        expected["toy/segmentation"]["heart"][0].numpy(), abs=0.005
    )
    assert told["image"] == {"width": 120, "height": 90, "turned": False}
    assert told["tasks"]["toy/segmentation"]["exclusive"] is False
    assert "preview" not in told


def test_points_are_in_pixels_of_the_image(serve: Any) -> None:
    head = {"class_path": "landmarks.LandmarkHead"}
    task = TaskSpec("toy", "points", "points", CLASSES, head)
    network = Network({"name": "test_efficientnet", "image_size": 64}, None, [task]).eval()
    model = Model(network, Facts(network.architecture))
    _, told, _ = call(f"{serve(model, ['localhost'])}/api/predict", file())
    expected = {name: value[0].tolist() for name, value in model([file()])["toy/points"].items()}
    assert list(told["tasks"]["toy/points"]["points"]) == list(CLASSES)
    for name, (x, y, score) in told["tasks"]["toy/points"]["points"].items():
        assert [x, y] == pytest.approx(expected[name][:2], abs=0.1)
        assert score == pytest.approx(expected[name][2], abs=1e-4)


def test_a_large_images_masks_are_smaller(url: str) -> None:
    task = quote("toy/segmentation")
    _, told, _ = call(f"{url}/api/predict?tasks={task}", file(300, 2048))
    assert list(told["tasks"]) == ["toy/segmentation"]
    png = base64.b64decode(told["tasks"]["toy/segmentation"]["masks"]["lung"])
    assert Image.open(io.BytesIO(png)).size == (1024, 150)


def encoded(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format, **options)
    return data.getvalue()


def shown(told: Any) -> np.ndarray:
    """The preview's pixels."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told["preview"]))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_seen_upright(url: str, model: Model, orientation: int) -> None:
    """As Pillow turns it; JPEG, PNG and WebP carry the same tag."""
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.asarray(Image.open(io.BytesIO(file())).convert("RGB"))
    for name, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})):
        data = encoded(pixels, name, exif=exif, **options)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        _, told, _ = call(f"{url}/api/predict?preview=true", data)
        assert np.array_equal(shown(told), expected)
        height, width = expected.shape[:2]
        assert told["image"] == {"width": width, "height": height, "turned": orientation != 1}
        boxes = [box["box"] for box in told["tasks"]["toy/detection"]["boxes"]]
        best = model([expected])["toy/detection"]["boxes"][0].tolist()
        assert boxes == [pytest.approx(box, abs=0.1) for box in best]


def test_a_broken_exif_is_none(recwarn: pytest.WarningsRecorder) -> None:
    data = file()
    exif = b"eXIfMM\0*" + b"\xff" * 50
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    picture = read(data[:33] + chunk + data[33:])
    assert (picture.turned, picture.pixels.shape) == (False, (90, 120, 1))
    assert not recwarn, "nothing on the server's terminal"


def test_deep_pixels_are_windowed_as_ark_predict_does(url: str, serve: Any, model: Model) -> None:
    deep = np.linspace(1000, 3000, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in ("PNG", "TIFF"):
        data = encoded(deep, name)
        _, told, _ = call(f"{url}/api/predict?preview=true", data)
        assert np.array_equal(shown(told), decode_image(data, name)[..., 0])
        other = serve(model, ["localhost"], window=(0.0, 4000.0))
        _, told, _ = call(f"{other}/api/predict?preview=true", data)
        assert (shown(told).min(), shown(told).max()) == (64, 191)


def test_a_dicom_file_is_seen(url: str) -> None:
    path = get_testdata_file("CT_small.dcm", read=False)
    data = Path(str(path)).read_bytes()
    status, told, _ = call(f"{url}/api/predict?preview=true", data)
    assert status == 200
    assert np.array_equal(shown(told), decode_image(data, "ct")[..., 0])


def test_a_large_image_takes_no_memory_for_each_class(serve: Any, model: Model) -> None:
    """A PNG of few bytes; masks of its own size would take 0.2 GB a class in float32."""
    address = serve(model, ["localhost"])
    call(f"{address}/api/predict", file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, told, _ = call(f"{address}/api/predict", encoded(np.zeros((7000, 7000), "u1"), "PNG"))
    assert (status, told["image"]["width"]) == (200, 7000)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 300_000, "kB: the file, its pixels and the encoder's copy"


def bomb(side: int) -> bytes:
    """The head of a PNG that says it has side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head
    return start + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(
    ("path", "data", "status", "said"),
    [
        ("/api/predict", b"junk", 400, "neither JPEG, PNG, WebP, TIFF nor DICOM"),
        ("/api/predict", b"", 400, "neither JPEG, PNG, WebP, TIFF nor DICOM"),
        ("/api/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n", 400, "neither JPEG, PNG"),
        ("/api/predict", b"<svg><script>alert(1)</script></svg>", 400, "neither JPEG, PNG"),
        ("/api/predict", file()[:200], 400, "image: chunk b'IDAT' of the PNG is damaged"),
        ("/api/predict", bomb(8_000), 400, "8000 x 8000 pixels; expected at most 50,000,000"),
        ("/api/predict", bomb(20_000), 400, "may be a decompression bomb"),
        ("/api/predict?preview=perhaps", file(), 400, "preview: 'perhaps'; Input should be"),
        ("/api/nothing", file(), 404, "POST /api/nothing: Not Found; there are GET /, GET /api"),
        ("/api/model", file(), 405, "POST /api/model: Method Not Allowed; there are"),
        ("/page/", None, 404, "GET /page/: Not Found"),
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
    status, told, _ = call(f"{url}/api/model", Host="evil.example")
    assert (status, "--names" in told["error"]) == (400, True)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": url.replace("127.0.0.1", "localhost")},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": url},
    ):
        status, told, _ = call(f"{url}/api/predict", file(), **headers)
        assert (status, "another site" in told["error"]) == (403, True), headers
    status, _, headers = call(f"{url}/api/model", Origin="https://evil.example")
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]", "192.168.1.5:80"]
)
def test_its_names_and_any_address_are_known(url: str, host: str) -> None:
    """Nobody can point an address elsewhere, so --host=0.0.0.0 needs no --names."""
    assert call(f"{url}/api/model", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["", "localhost.evil.example", "[::1", "127.0.0.1.evil.example"])
def test_what_only_looks_like_its_name_is_refused(url: str, host: str) -> None:
    assert call(f"{url}/api/model", Host=host)[0] == 400


def test_its_own_page_may_ask(url: str) -> None:
    """A proxy may have changed Host; what a browser says of the site is believed."""
    for headers in (
        {"Origin": url},
        {"Origin": "https://ark.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert call(f"{url}/api/predict?tasks=toy/values", file(), **headers)[0] == 200


def test_a_form_is_told_what_to_send(url: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, told, _ = call(f"{url}/api/predict", b"--x", **headers)
    assert (status, "--data-binary" in told["error"]) == (400, True)


class Slow:
    """A model that computes until it is let go, and counts."""

    def __init__(self, model: Model) -> None:
        self.model, self.go, self.count = model, threading.Event(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, *args: Any) -> Any:
        self.count += 1
        assert self.go.wait(60)
        return self.model.predict(*args)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_page_answers_while_many_images_wait(serve: Any, model: Model) -> None:
    slow = Slow(model)
    address = serve(slow, ["localhost"], Limits(queue=50))
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(call, f"{address}/api/predict", file()) for _ in range(50)]
        wait_for(lambda: call(f"{address}/api/predict", file())[0] == 503)
        assert call(f"{address}/")[0] == 200
        status, told, _ = call(f"{address}/api/predict", file())
        assert (status, "50 images are waiting" in told["error"]) == (503, True)
        slow.go.set()
        assert [answer.result()[0] for answer in asked] == [200] * 50


def test_nothing_is_computed_for_who_has_gone(serve: Any, model: Model) -> None:
    slow = Slow(model)
    address = serve(slow, ["localhost"], Limits(queue=3))
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /api/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(file())}\r\n\r\n"
    callers = [socket.create_connection((host, int(port))) for _ in range(3)]
    for caller in callers:
        caller.sendall(head.encode() + file())
        wait_for(lambda: slow.count == 1)
    wait_for(lambda: call(f"{address}/api/predict", file())[0] == 503)
    for caller in callers[1:]:
        caller.close()
    slow.go.set()
    assert callers[0].recv(15) == b"HTTP/1.1 200 OK"
    callers[0].close()
    wait_for(lambda: call(f"{address}/api/predict", file())[0] == 200)
    assert slow.count == 2, "the first caller's and ours"


def test_an_upload_that_does_not_end_is_ended(serve: Any, model: Model) -> None:
    address = serve(model, ["localhost"], Limits(seconds=0.2))
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        caller.settimeout(60)
        assert b" 408 " in caller.recv(1000)


def test_requests_at_once_get_their_own_answers(url: str, model: Model) -> None:
    images = [file(seed=seed) for seed in range(8)]
    address = f"{url}/api/predict?tasks=toy/values"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: call(address, image)[1], images))
    for image, told in zip(images, found, strict=True):
        expected = {n: float(v[0]) for n, v in model([image], ["toy/values"])["toy/values"].items()}
        assert told["tasks"]["toy/values"]["values"] == pytest.approx(expected, abs=1e-4)


def test_the_note_is_the_servers(url: str, serve: Any, model: Model) -> None:
    assert "No medical device" in call(f"{url}/api/model")[1]["note"]
    address = serve(model, ["localhost"], note="Only for cats.")
    assert call(f"{address}/api/model")[1]["note"] == "Only for cats."
    assert "medical" not in call(address)[1]


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    for name in sorted(path.name for path in PAGE.iterdir()):
        status, text, _ = call(f"{url}/page/{name}")
        assert status == 200
        assert "http" not in text.replace("httpx", "")
    assert call(f"{url}/page/../app.py")[0] == 404


def test_a_taken_port_and_wrong_limits_are_said(url: str, model: Model) -> None:
    """At once: no model is loaded before, so that none need be there."""
    with pytest.raises(ConfigError, match=r"in use; choose another --port"):
        serving.serve("none", port=int(url.rpartition(":")[2]))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0 cannot .* assign requested address"):
        serving.serve("none", host="192.0.2.1", port=0)
    with pytest.raises(ConfigError, match=r"99999 cannot .* 0-65535"):
        serving.serve("none", port=99999)
    with pytest.raises(ConfigError, match="megabytes: 0; expected"):
        serving.serve("none", megabytes=0)
    with pytest.raises(ConfigError, match="window is 'dark'; expected"):
        serving.serve("none", window="dark")
