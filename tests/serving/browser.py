"""A real browser without a window: Debian's Chromium, or whichever is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DESK = {"viewport": {"width": 1000, "height": 760}, "device_scale_factor": 2}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox does not start for root, as which tests run in containers.
    rights = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=rights)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, token: str = "", refused: bool = False, **options: Any
) -> Iterator[Page]:
    """The page, in a profile of its own.

    Nothing may come from elsewhere, and the console may complain only where something is `refused`.
    """
    context = browser.new_context(**{"reduced_motion": "reduce", **options})
    page = context.new_page()
    complaints: list[str] = []
    requested: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.locator("#model:not(:empty)").wait_for()
    page.evaluate("token => { document.forms[0].elements.token.value = token }", token)
    try:
        yield page
        assert all(other.startswith((url, "data:")) for other in requested), requested
        assert refused or not complaints, complaints
    finally:
        context.close()


def fill(page: Page, **wanted: object) -> None:
    """The form, also what is folded away; the prompt last, so that it has the focus."""
    page.locator("details").evaluate("more => { more.open = true }")
    for name, value in sorted(wanted.items(), key=lambda field: field[0] == "prompt"):
        page.locator(f"[name={name}]").fill(str(value))
    page.locator("details").evaluate("more => { more.open = false }")
