"""The page of `lgpl serve` in a real browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from lgpl.generator import Sampling
from lgpl.serving.page import MOST_PREVIEWS
from tests.serving.browser import CHROMIUM, PHONE, chromium, fill, opened
from tests.serving.servers import TOKEN, Server, export, serve, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a busy machine draws slowly
expect.set_options(timeout=120_000)  # a busy machine takes its time

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Draws one image after the other, slowly enough to watch."""
    checkpoint = export(tmp_path_factory.mktemp("model"), grid=[16, 12])
    with serve(checkpoint, "--batch-size", "1", "--queue", "4") as running:
        yield running


def ask(page: Page, **wanted: object) -> None:
    """Fill the form and press Enter."""
    fill(page, **wanted)
    page.locator("[name=prompt]").press("Enter")


def png(source: str | None) -> bytes:
    return base64.b64decode((source or "").removeprefix("data:image/png;base64,"))


@needs_chromium
def test_a_prompt_is_typed_and_the_images_appear(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    """They equal the sampler's, can be downloaded, and are in the history with their settings."""
    wanted = {"prompt": 7, "n": 2, "seed": 5, "guidance": 2, "top_k": 20}
    with opened(browser, server.url, TOKEN) as page:
        expect(page.locator("#model")).to_have_text("generator · 48 × 64 pixels")
        ask(page, **wanted)
        expect(page.locator("#status")).to_have_text("2 of 2 drawn")
        drawn = [server.offline(7, seed, Sampling(guidance=2.0, top_k=20)) for seed in (5, 6)]
        images = page.locator("#images img")
        assert [png(images.nth(i).get_attribute("src")) for i in (0, 1)] == drawn
        with page.expect_download() as download:
            page.get_by_label("Download the image of seed 6").click()
        assert download.value.suggested_filename == "7-6.png"
        download.value.save_as(tmp_path / "image.png")
        assert (tmp_path / "image.png").read_bytes() == drawn[1]

        page.reload()
        expect(page.locator("#history img")).to_have_js_property("naturalHeight", 96)
        page.locator("[name=prompt]").fill("3")
        page.locator("#history button").click()
        expect(page.locator("#status")).to_contain_text("Draw shows this drawing again")
        for name, value in wanted.items():
            expect(page.locator(f"[name={name}]")).to_have_value(str(value))
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#before")).to_be_hidden()


@needs_chromium
def test_greedy_images_are_drawn_once(browser: Browser, tmp_path: Path) -> None:
    """Where the likeliest codes are taken, every seed gives the same image."""
    with serve(export(tmp_path), "--temperature", "0") as greedy:
        with opened(browser, greedy.url, TOKEN) as page:
            expect(page.locator("[name=temperature]")).to_have_value("0")
            expect(page.locator("[name=n]")).to_have_value("1")


@needs_chromium
def test_an_empty_page_offers_an_example(browser: Browser, server: Server) -> None:
    """A click draws it; nothing that was refused is said to be under way."""
    with opened(browser, server.url, TOKEN, refused=True) as page:
        expect(page.locator("[name=prompt]")).to_have_js_property("maxLength", 9)
        assert "follows the prompt" in (
            page.get_by_title("How closely").get_attribute("title") or ""
        )
        fill(page, prompt="", n=1, seed=2)
        page.locator("#example").click()
        expect(page.locator("figure a")).to_have_count(1)
        expect(page.locator("#start")).to_be_hidden()
        assert png(page.locator("#images img").get_attribute("src")) == server.offline(0, 2)
        ask(page, prompt="a dog")
        expect(page.get_by_role("alert")).to_contain_text("is no class")
        expect(page.locator("#status")).to_be_empty()
        expect(page.locator("#start")).to_be_visible()


@needs_chromium
def test_the_image_grows(browser: Browser, server: Server) -> None:
    with opened(browser, server.url, TOKEN) as page:
        page.evaluate(
            """() => {
                window.stages = [];
                const look = () => {
                    const source = document.querySelector("#images img")?.src;
                    if (source && source !== stages.at(-1)) stages.push(source);
                };
                const options = { childList: true, subtree: true };
                new MutationObserver(look).observe(document.querySelector("#images"), options);
            }"""
        )
        ask(page, prompt=1, n=1, seed=2)
        expect(page.locator("figure a")).to_have_count(1)
        stages = page.evaluate("stages")
        assert len(set(stages)) == len(stages) == MOST_PREVIEWS + 1
        assert png(stages[-1]) == server.offline(1, 2)


@pytest.mark.slow
@needs_chromium
def test_cancelled_images_are_not_drawn(browser: Browser, server: Server) -> None:
    drawn = server.metric("lgpl_images_total")
    with opened(browser, server.url, TOKEN) as page:
        ask(page, prompt=1, n=4, seed=3)
        page.locator("#images img").first.wait_for()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("button", name="Draw")).to_be_visible()
        assert page.locator("figure").count() == page.locator("figure a").count() < 4
        expect(page.locator("#error")).to_be_hidden()
        wait_until(lambda: server.metric('lgpl_requests_total{status="499"}') > 0)
        assert server.metric("lgpl_images_total") < drawn + 4


@needs_chromium
def test_an_error_is_shown_at_its_field(browser: Browser, server: Server) -> None:
    """Errors of the page's own checks and of the server's, such as a wrong class."""
    wrong: list[tuple[dict[str, object], str, str]] = [
        ({"prompt": ""}, "prompt", "Say what to show."),
        ({"prompt": "a dog"}, "prompt", "'a dog' is no class: give one from 0 to 9."),
        ({"prompt": 10}, "prompt", "'10' is no class: give one from 0 to 9."),
        ({"prompt": 1, "n": 5}, "n", "from 1 to 4"),
        ({"prompt": 1, "n": 1, "top_p": 0}, "top_p", "top_p"),
        ({"prompt": 1, "top_p": 1, "guidance": -1}, "guidance", "guidance"),
        ({"prompt": 1, "guidance": 1, "seed": 1.5}, "seed", "whole number"),
    ]
    with opened(browser, server.url, TOKEN, refused=True) as page:
        for wanted, name, message in wrong:
            ask(page, **wanted)
            expect(page.locator("[aria-invalid=true]")).to_have_attribute("name", name)
            expect(page.get_by_role("alert")).to_contain_text(message)
            expect(page.locator(f"[name={name}]")).to_be_visible()  # though it was folded away
            expect(page.locator("figure")).to_have_count(0)


@pytest.mark.slow
@needs_chromium
def test_a_full_queue_is_shown(browser: Browser, server: Server) -> None:
    """Images that were accepted are not lost."""
    with opened(browser, server.url, TOKEN, refused=True) as page, ThreadPoolExecutor() as pool:
        fill(page, prompt=1, n=4, seed=0)
        others = pool.submit(server.post, {"prompt": "2", "n": 4})
        wait_until(lambda: httpx.get(f"{server.url}/health").json()["waiting"] == 3)
        page.locator("[name=prompt]").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Too many images are waiting")
        expect(page.get_by_role("button", name="Draw")).to_be_visible()
        assert 1 <= page.locator("figure a").count() == page.locator("figure").count() < 4
        assert others.result().status_code == 200


@pytest.mark.slow
@needs_chromium
def test_the_token_is_asked_for_once(browser: Browser, server: Server) -> None:
    with opened(browser, server.url, refused=True) as page:
        token = page.get_by_label("Bearer token")
        expect(token).to_be_hidden()
        ask(page, prompt=1, n=1)
        expect(page.get_by_role("alert")).to_contain_text("bearer token")
        for typed in ("ключ", TOKEN):  # no header can hold the first as it is
            expect(token).to_be_focused()
            expect(token).to_have_attribute("aria-invalid", "true")
            token.fill(typed)
            token.press("Enter")
        expect(page.locator("figure a")).to_have_count(1)
        page.reload()
        ask(page, prompt=1, n=1)
        expect(page.locator("figure a")).to_have_count(1)


@pytest.mark.slow
@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, server: Server) -> None:
    with opened(browser, server.url, TOKEN, **PHONE) as page:
        ask(page, prompt=7, n=2, seed=0)
        expect(page.locator("figure a")).to_have_count(2)
        page.locator("summary").click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide == PHONE["viewport"]["width"]
        places = page.locator("figure").evaluate_all(
            "all => all.map(e => [e.offsetLeft, e.offsetTop])"
        )
        assert places[0][0] < places[1][0] and places[0][1] == places[1][1]  # side by side


def test_only_the_page_s_own_script_may_run(server: Server) -> None:
    for path in ("/", "/page/style.css", "/page/script.js"):
        answer = httpx.get(server.url + path).raise_for_status()
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy and "unsafe" not in policy
        assert "://" not in answer.text
