"""The images of the page in lgpl/serving/README.md: `python -m tests.serving.screenshot --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.serving.browser import DESK, PHONE, chromium, fill, opened
from tests.serving.servers import TOKEN, serve

LOOKS = {
    "light": {**DESK, "color_scheme": "light"},
    "dark": {**DESK, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
}


def edit(page: Page, prompt: str) -> None:
    """Paint over the last drawing's image from its left to its right, and have that drawn anew."""
    page.locator("figure").last.get_by_role("button", name="Edit").click()
    page.locator("#brush").fill("30")
    box = page.locator("#mask").bounding_box()
    assert box is not None
    across, down = box["width"], box["height"]
    page.mouse.move(box["x"] + across * 0.3, box["y"] + down * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + across * 0.7, box["y"] + down * 0.35, steps=9)
    page.mouse.up()
    fill(page, prompt=prompt, n=3)
    page.get_by_role("button", name="Draw anew").click()
    expect(page.locator("figure a")).to_have_count(3, timeout=120_000)  # there were four


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--checkpoint", type=Path, required=True, help="of a generator")
    p.add_argument("--name", default="emoji", help="the model's, on the page")
    p.add_argument("--prompts", nargs="+", default=["red heart", "rocket", "a slice of pizza"])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--guidance", default="1")
    p.add_argument("--temperature", default="0")
    p.add_argument("--edit", help="prompt of a part that is painted over, for edit-LOOK.png")
    p.add_argument("--looks", nargs="+", choices=LOOKS, default=["light", "dark"])
    p.add_argument("--out", type=Path, required=True, help="folder for page-LOOK.png")
    options = p.parse_args()
    drawing = {name: getattr(options, name) for name in ("seed", "guidance", "temperature")}
    with serve(options.checkpoint, "--name", options.name) as server, chromium() as browser:
        for look in options.looks:
            with opened(browser, server.url, TOKEN, **LOOKS[look]) as page:
                for i, prompt in enumerate(options.prompts):
                    fill(page, prompt=prompt, **drawing)
                    page.locator("[name=prompt]").press("Enter")
                    expect(page.locator("#history li")).to_have_count(i + 1, timeout=120_000)
                if options.edit:
                    edit(page, options.edit)
                name = f"{'edit' if options.edit else 'page'}-{look}.png"
                page.screenshot(path=options.out / name, full_page=bool(options.edit))


if __name__ == "__main__":
    main()
