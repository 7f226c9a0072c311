"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from published_models import image_file

from ark.published.model import Model
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
    answer = {"tasks": {"toy/detection": {"kind": "detection", "boxes": [box]}}, "seconds": 0.1}
    page.route("**/api/predict", lambda route: route.fulfill(json=answer))
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
    expect(page.locator("#message.bad")).to_contain_text("letter.txt: images: bytes cannot be read")
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
