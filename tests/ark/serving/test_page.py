"""The page in a real browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, Route, expect, sync_playwright
from published_models import image_file
from pydicom.data import get_testdata_file

from ark.published.model import Model
from ark.types import MaskPrediction
from toys import CLASSES

pytestmark = pytest.mark.slow
expect.set_options(timeout=60_000)  # a machine that does other things
SIZE = "chest.png: 120 \N{MULTIPLICATION SIGN} 90 pixels"


@pytest.fixture
def page(chromium: str, url: str) -> Iterator[Page]:
    faults: list[str] = []
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.goto(url)
        expect(opened.locator("#task option")).not_to_have_count(0)
        yield opened
        browser.close()
    assert not faults


def drop(page: Page, name: str, data: bytes) -> None:
    """As a user does who drags a file onto the page."""
    page.evaluate(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }""",
        [name, list(data)],
    )


def look(page: Page, task: str) -> list[str]:
    page.select_option("#task", task)
    return page.locator("#rows li").all_inner_texts()


def known_answer(page: Page, tasks: dict[str, Any]) -> None:
    """The server says this of whatever it gets: of an image of 120 x 90 pixels."""
    answer = {
        "image": {"width": 120, "height": 90, "turned": False},
        "tasks": tasks,
        "preview": png(np.zeros((90, 120))),
        "seconds": 0.1,
    }
    page.route("**/api/predict*", lambda route: route.fulfill(json=answer))


def known_model(page: Page, **said: Any) -> None:
    """The server says this of its model, besides what it says of the real one."""
    told = page.request.get(f"{page.url}api/model").json() | said
    page.route("**/api/model", lambda route: route.fulfill(json=told))
    page.reload()
    expect(page.locator("#note")).not_to_be_empty()


def png(pixels: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def painted(page: Page) -> int:
    """A checksum of the picture."""
    return page.evaluate(
        """() => {
            const picture = document.getElementById("picture"), { width, height } = picture;
            const pixels = picture.getContext("2d").getImageData(0, 0, width, height).data;
            return pixels.reduce((sum, value, at) => (sum * 31 + value + at) % 1000003, 7);
        }"""
    )


def test_an_image_is_dropped_and_every_head_answers(page: Page, model: Model) -> None:
    expect(page.locator("#name")).to_have_text("small")
    data = image_file()
    drop(page, "chest.png", data)
    expect(page.locator("#message")).to_contain_text(SIZE)
    probabilities = model([data])["toy/multilabel"]
    rows = look(page, "toy/multilabel")
    assert [row.split("\n")[0] for row in rows] == list(CLASSES)
    for row, name in zip(rows, CLASSES, strict=True):
        assert float(row.split("\n")[1]) == pytest.approx(float(probabilities[name][0]), abs=1e-3)
    assert all("% of the image" in row for row in look(page, "toy/segmentation"))


def test_the_threshold_acts_at_once(page: Page) -> None:
    drop(page, "chest.png", image_file())
    expect(page.locator("#picture")).to_be_visible()
    look(page, "toy/segmentation")
    pictures, shares = set(), []
    for value in ("0", "0.5", "1"):
        page.locator("#threshold").fill(value)
        expect(page.locator("#shown")).to_have_text(f"{float(value):.2f}")
        rows = page.locator("#rows li").all_inner_texts()
        shares.append(sum(float(row.split()[-5]) for row in rows))
        pictures.add(painted(page))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert len(pictures) >= 2


def test_boxes_are_drawn_from_the_threshold_on(page: Page) -> None:
    """Of an answer that is known; the model's own weights are random."""
    box = {"box": [10.0, 20.0, 70.0, 80.0], "score": 0.6, "label": "lung"}
    known_answer(page, {"toy/detection": {"kind": "detection", "boxes": [box]}})
    page.select_option("#task", "toy/detection")
    drop(page, "chest.png", image_file())
    expect(page.locator("#picture")).to_be_visible()
    assert page.locator("#rows li").all_inner_texts() == ["lung\n0.600"]
    drawn = painted(page)
    page.locator("#threshold").fill("0.61")
    assert page.locator("#rows li").all_inner_texts() == ["No box of at least 0.61"]
    assert painted(page) != drawn


def test_a_bad_file_shows_its_message_and_the_next_one_works(page: Page) -> None:
    drop(page, "letter.txt", b"no image")
    expect(page.locator("#message.bad")).to_contain_text("letter.txt: image: begins with")
    drop(page, "big.png", bytes(600_000))
    expect(page.locator("#message.bad")).to_contain_text("big.png: the file is larger than")
    drop(page, "chest.png", image_file())
    expect(page.locator("#message")).to_contain_text(SIZE)
    expect(page.locator("#message.bad")).to_have_count(0)


def test_a_file_can_be_chosen_and_a_narrow_window_holds_all(page: Page, tmp_path: Path) -> None:
    (tmp_path / "chest.png").write_bytes(image_file())
    page.set_viewport_size({"width": 400, "height": 800})
    page.set_input_files("#file", tmp_path / "chest.png")
    expect(page.locator("#picture")).to_be_visible()
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400


def test_findings_of_an_older_image_do_not_stay_under_a_bad_file(page: Page) -> None:
    drop(page, "chest.png", image_file())
    expect(page.locator("#picture")).to_be_visible()
    drop(page, "letter.txt", b"no image")
    expect(page.locator("#message.bad")).to_be_visible()
    expect(page.locator("#picture")).to_be_hidden()
    expect(page.locator("#rows li")).to_have_count(0)


def turned_photograph() -> bytes:
    """Stored 200 x 100, shown 100 x 200: dark above, bright below."""
    pixels = np.zeros((100, 200), np.uint8)
    pixels[:, 100:] = 255
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.fromarray(pixels).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


def pixel(page: Page, x: float, y: float) -> list[int]:
    """Red, green and blue of the picture at a share of its width and height."""
    return page.evaluate(
        """([x, y]) => {
            const picture = document.getElementById("picture");
            const at = [Math.floor(x * picture.width), Math.floor(y * picture.height)];
            return [...picture.getContext("2d").getImageData(...at, 1, 1).data.slice(0, 3)];
        }""",
        [x, y],
    )


def gray_at(page: Page, x: float, y: float) -> int:
    return pixel(page, x, y)[0]


@pytest.mark.parametrize("sharp", [1, 3])
def test_masks_boxes_and_points_lie_where_they_belong(chromium: str, url: str, sharp: int) -> None:
    """On a black image of 120 x 90, also on a phone's screen of three pixels a pixel."""
    orange, black = pytest.approx([0xE6, 0x9F, 0], abs=3), [0, 0, 0]
    half = np.zeros((90, 120))
    half[:, :60] = 255
    masks = dict.fromkeys(CLASSES, png(np.zeros((90, 120)))) | {"heart": png(half)}
    box = {"box": [30, 45, 60, 90], "score": 0.9, "label": "heart"}
    points = {name: [0, 0, 0] for name in CLASSES} | {"heart": [90.0, 30.0, 0.8]}
    tasks = {
        "segmentation": {"exclusive": False, "masks": masks},
        "detection": {"boxes": [box]},
        "points": {"points": points},
    }
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(device_scale_factor=sharp)
        page.goto(url)
        said = {f"toy/{kind}": {"kind": kind, "classes": list(CLASSES)} for kind in tasks}
        known_model(page, tasks=said)
        known_answer(page, {f"toy/{kind}": {"kind": kind} | task for kind, task in tasks.items()})
        drop(page, "chest.png", image_file())
        expect(page.locator("#picture")).to_be_visible()
        assert pixel(page, 0.45, 0.5) == pytest.approx([0.45 * 0xE6, 0.45 * 0x9F, 0], abs=4)
        assert pixel(page, 0.55, 0.5) == black
        look(page, "toy/detection")
        assert pixel(page, 0.25, 0.75) == orange
        assert pixel(page, 0.27, 0.75) == pixel(page, 0.23, 0.75) == black
        look(page, "toy/points")
        assert pixel(page, 0.75, 1 / 3) == orange
        assert pixel(page, 0.5, 1 / 3) == black
        browser.close()


def test_a_turned_photograph_is_shown_as_the_model_sees_it(page: Page) -> None:
    drop(page, "phone.jpg", turned_photograph())
    expect(page.locator("#message")).to_contain_text(
        "100 \N{MULTIPLICATION SIGN} 200 pixels, turned"
    )
    look(page, "toy/values")
    assert gray_at(page, 0.5, 0.25) < 20
    assert gray_at(page, 0.5, 0.75) > 235


@pytest.mark.parametrize("name", ["deep.png", "gray.tif", "ct.dcm"])
def test_files_that_no_browser_shows_are_shown(page: Page, name: str) -> None:
    if name == "ct.dcm":
        data = Path(str(get_testdata_file("CT_small.dcm", read=False))).read_bytes()
    else:
        buffer, deep = io.BytesIO(), np.linspace(1000, 3000, 64 * 64).reshape(64, 64)
        Image.fromarray(deep.astype(np.uint16)).save(
            buffer, {"png": "PNG", "tif": "TIFF"}[name[-3:]]
        )
        data = buffer.getvalue()
    drop(page, name, data)
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#message.bad")).to_have_count(0)
    look(page, "toy/values")
    assert len({gray_at(page, 0.5, y / 10) for y in range(10)}) > 3


def test_exclusive_masks_are_those_of_mask_prediction(page: Page) -> None:
    """The most probable class or the background, and the threshold does not act."""
    planes = np.random.default_rng(0).dirichlet(np.ones(4), (90, 120))[..., :3] * 255
    planes = np.moveaxis(planes, -1, 0).round()
    masks = dict(zip(CLASSES, map(png, planes), strict=True))
    task = {"kind": "segmentation", "exclusive": True, "masks": masks}
    known_answer(page, {"toy/segmentation": task})
    page.select_option("#task", "toy/segmentation")
    drop(page, "chest.png", image_file())
    expect(page.locator("#picture")).to_be_visible()
    expected = MaskPrediction(torch.from_numpy(planes[None] / 255), exclusive=True).masks()[0]
    for row, mask in zip(page.locator("#rows li").all_inner_texts(), expected, strict=True):
        assert float(row.split()[-5]) == pytest.approx(100 * float(mask.float().mean()), abs=0.2)
    expect(page.locator("#threshold")).to_be_disabled()


def test_every_class_has_a_colour_of_its_own_and_can_be_hidden(page: Page) -> None:
    names = [f"<img src=x onerror=alert(1)> {'long' * 30} {n}" for n in range(40)]
    known_model(page, tasks={"toy/many": {"kind": "segmentation", "classes": names}})
    full = png(np.full((90, 120), 255))
    task = {"kind": "segmentation", "exclusive": False, "masks": dict.fromkeys(names, full)}
    known_answer(page, {"toy/many": task})
    page.set_viewport_size({"width": 360, "height": 700})
    drop(page, "<b>chest</b>.png", image_file())
    expect(page.locator("#rows li")).to_have_count(40)
    assert page.locator("#rows li").first.inner_text().startswith("<img src=x")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = "all => all.map((swatch) => swatch.style.background)"
    assert len(set(page.locator(".swatch").evaluate_all(colours))) == 40
    before, box = painted(page), page.locator("#rows input").last
    box.focus()
    page.keyboard.press("Space")
    assert painted(page) != before
    expect(box).to_be_focused()
    page.set_viewport_size({"width": 360, "height": 600})  # as a phone does that hides its bar
    expect(box).to_be_focused()
    page.set_viewport_size({"width": 360, "height": 700})
    box.check()
    page.wait_for_timeout(100)
    assert painted(page) == before


def test_each_class_is_measured_by_its_own_threshold(page: Page) -> None:
    known_model(
        page,
        tasks={
            "toy/a": {"kind": "multilabel", "classes": ["one", "two"], "thresholds": [0.1, 0.6]},
            "toy/b": {"kind": "multiclass", "classes": ["one", "two", "three"]},
        },
    )
    known_answer(
        page,
        {
            "toy/a": {"kind": "multilabel", "classes": {"one": 0.2, "two": 0.55}},
            "toy/b": {"kind": "multiclass", "classes": {"one": 0.3, "two": 0.4, "three": 0.3}},
        },
    )
    drop(page, "chest.png", image_file())
    below = page.locator("#rows li.below")
    expect(below).to_have_text("two0.550")
    page.locator("#threshold").fill("0.5")
    expect(below).to_have_text("one0.200")
    expect(page.locator("#own")).not_to_be_checked()
    assert len(look(page, "toy/b")) == 3
    expect(below).to_have_count(2)
    expect(page.locator("#own")).to_be_hidden()


def test_a_model_without_heads_says_so(page: Page) -> None:
    known_model(page, tasks={})
    expect(page.locator("#message")).to_contain_text("no heads")
    known_answer(page, {})
    drop(page, "chest.png", image_file())
    expect(page.locator("#message")).to_contain_text(SIZE)
    expect(page.locator("#picture")).to_be_visible()


def test_a_server_that_is_gone_is_said(page: Page) -> None:
    page.route("**/api/predict*", lambda route: route.abort())
    drop(page, "chest.png", image_file())
    expect(page.locator("#message.bad")).to_contain_text("is `ark serve` still running?")
    page.unroute("**/api/predict*")
    page.route("**/api/predict*", lambda route: route.fulfill(status=502, body="<html>"))
    drop(page, "chest.png", image_file())
    expect(page.locator("#message.bad")).to_contain_text("the server answered 502")


def test_an_older_images_findings_are_dimmed_and_its_answer_is_dropped(page: Page) -> None:
    drop(page, "chest.png", image_file())
    expect(page.locator("#picture")).to_be_visible()
    held: list[Route] = []
    page.route("**/api/predict*", lambda route: held.append(route))
    drop(page, "slow.png", image_file(100, 100))
    expect(page.locator("#drop")).to_have_attribute("aria-busy", "true")
    for _ in range(3000):
        if held:  # the browser's request has come to this process
            break
        page.wait_for_timeout(20)
    page.unroute("**/api/predict*")
    drop(page, "last.png", image_file(60, 50))
    expect(page.locator("#message")).to_contain_text("last.png: 50")
    expect(page.locator("#drop")).to_have_attribute("aria-busy", "false")
    assert held[0].request.failure == "net::ERR_ABORTED"


def test_the_same_file_can_be_chosen_twice_and_by_the_keyboard(page: Page, tmp_path: Path) -> None:
    (tmp_path / "chest.png").write_bytes(image_file())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "chest.png"))
    page.wait_for_timeout(2000)  # the browser is told of the listener without being waited for
    page.keyboard.press("Tab")
    for count in (1, 2):
        expect(page.locator("#file")).to_be_focused()
        with page.expect_response("**/api/predict*"):
            page.keyboard.press("Enter")
        expect(page.locator("#message")).to_contain_text(SIZE)
        assert len(asked) == count


def test_the_note_is_shown_as_text(page: Page) -> None:
    known_model(page, note="<b>Only for cats.</b>")
    expect(page.locator("#note")).to_have_text("<b>Only for cats.</b>")
