"""Part of an image painted over on the page of `lgpl serve`, in a real browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lgpl.inference import load_generator
from lgpl.serving.limits import Limits
from lgpl.serving.sampler import SamplerEngine
from tests.serving.browser import CHROMIUM, PHONE, chromium, fill, opened
from tests.serving.generators import EVEN_FIRST
from tests.serving.servers import TOKEN, export, in_process
from tests.shards import image_bytes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
expect = playwright.expect
expect.set_options(timeout=120_000)  # a busy machine takes its time
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
SHAPE = (24, 20)  # rows and columns of pixels; codes of 4 a side
PAINTED = """() => {
    const mask = document.getElementById("mask");
    const { data } = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
    return [...data].filter((_, i) => i % 4 === 3);
}"""
ANOTHER = """old => {
    const link = document.querySelector("figure a");
    return link && link.href !== old;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", params=["any", "tail"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The masks that a model takes, and where it is served."""
    decoder = EVEN_FIRST if request.param == "any" else None
    checkpoint = export(tmp_path_factory.mktemp("model"), decoder=decoder)
    engine = SamplerEngine(load_generator(str(checkpoint), None, "cpu", trust=["tests"]))
    with in_process(engine, Limits(token=TOKEN)) as port:
        yield request.param, f"http://127.0.0.1:{port}"


def pixels(source: str | None) -> np.ndarray:
    data = (source or "").partition("base64,")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def painted(page: Page) -> np.ndarray:
    return np.array(page.evaluate(PAINTED)).reshape(SHAPE) >= 128


def anew(page: Page) -> np.ndarray:
    """What a click on the button draws."""
    link = page.locator("figure a")
    old = link.get_attribute("href") if link.count() else None
    page.get_by_role("button", name="Draw anew").click()
    page.wait_for_function(ANOTHER, arg=old)
    return pixels(link.get_attribute("href"))


def test_what_is_painted_over_is_drawn_anew_and_nothing_else(
    browser: Browser, site: tuple[str, str]
) -> None:
    masks, url = site
    with opened(browser, url, TOKEN) as page:
        fill(page, prompt=7, n=1, seed=2)
        page.locator("[name=prompt]").press("Enter")
        expect(page.locator("figure a")).to_have_count(1)
        before = pixels(page.locator("figure a").get_attribute("href"))
        page.get_by_label("Edit the image of seed 2").click()
        hint = page.locator("#hint")
        expect(hint).to_contain_text("everything else stays" if masks == "any" else "follows")
        page.get_by_role("button", name="Draw anew").click()
        expect(page.get_by_role("alert")).to_have_text("Paint over what is to be drawn anew.")

        page.locator("#brush").fill("20")
        box = page.locator("#mask").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.45)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.45, steps=4)
        page.mouse.up()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9)
        hole = painted(page)
        if masks == "any":
            assert 8 < hole.sum() < 60 and hole[10, 10] and not hole[15:].any()
        else:  # from the second code of the third row on, all that follows
            wanted = np.zeros(SHAPE, bool)
            wanted[8:, 4:] = wanted[12:] = True
            assert (hole == wanted).all()
        fill(page, prompt=3, seed=9)
        after = anew(page)
        assert (after[~hole] == before[~hole]).all() and (after[hole] != before[hole]).any()
        expect(page.locator("#history button")).to_have_count(1)  # an edit needs its image

        page.get_by_role("button", name="Clear", exact=True).first.click()
        assert not painted(page).any()
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#editor")).to_be_hidden()


def test_an_image_of_ones_own_is_painted_over_with_a_finger(
    browser: Browser, site: tuple[str, str], tmp_path: Path
) -> None:
    _, url = site
    (tmp_path / "own.png").write_bytes(image_bytes(5, (80, 96), "png"))
    (tmp_path / "text.png").write_text("no image")
    with opened(browser, url, TOKEN, **PHONE) as page:
        page.locator("#file").set_input_files(tmp_path / "text.png")
        expect(page.get_by_role("alert")).to_have_text("text.png cannot be read as an image.")
        page.locator("#file").set_input_files(tmp_path / "own.png")
        expect(page.locator("#editor")).to_be_visible()
        before = pixels(page.evaluate("document.getElementById('picture').toDataURL()"))
        small = Image.open(tmp_path / "own.png").resize(SHAPE[::-1], Image.Resampling.LANCZOS)
        assert np.abs(before.astype(int) - np.asarray(small)).mean() < 4
        page.locator("#mask").scroll_into_view_if_needed()
        box = page.locator("#mask").bounding_box()
        assert box is not None
        page.touchscreen.tap(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.7)
        hole = painted(page)
        assert hole.any() and not hole[:12].any()
        fill(page, prompt=7, n=1, seed=9)
        after = anew(page)
        assert (after[~hole] == before[~hole]).all() and (after[hole] != before[hole]).any()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide == PHONE["viewport"]["width"]
