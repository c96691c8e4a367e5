"""Links to images: without a token, unguessable, bounded in time, number and bytes."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from lgpl.serving import links
from lgpl.serving.errors import APIError
from lgpl.serving.limits import Limits
from lgpl.serving.links import Links
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import TOKEN, export, in_process, serve


def test_a_link_is_served_without_the_token(tmp_path: Path) -> None:
    with serve(export(tmp_path)) as server:
        body = {"prompt": "3", "n": 2, "seed": 4, "response_format": "url", "size": "auto"}
        images = server.post(body).raise_for_status().json()["data"]
        assert all(set(image) == {"url", "seed"} for image in images)
        for image, seed in zip(images, (4, 5), strict=True):
            assert image["url"].startswith(f"{server.url}/images/") and image["seed"] == seed
            answer = httpx.get(image["url"]).raise_for_status()
            assert answer.content == server.offline(3, seed)
            head = httpx.head(image["url"])
            assert (head.status_code, head.content) == (200, b"")
            for got in (answer, head):
                assert got.headers["content-type"] == "image/png"
                assert got.headers["content-length"] == str(len(answer.content))
        body = {**body, "output_format": "webp", "n": 1}
        (image,) = server.post(body).raise_for_status().json()["data"]
        answer = httpx.get(image["url"])
        assert answer.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(answer.content)).format == "WEBP"

        for wrong in (image["url"][:-6], image["url"] + "x", f"{server.url}/images/1.png"):
            answer = httpx.get(wrong)
            assert answer.status_code == 404
            assert "unknown or has expired" in answer.json()["error"]["message"]
        error = server.post({**body, "stream": True}).json()["error"]
        assert error["param"] == "response_format"
        assert error["message"] == "response_format must be b64_json for a stream, got 'url'."


def test_the_oldest_make_room() -> None:
    store = Links(number=3, size=100, seconds=60)
    first, second = store.put([b"a" * 40, b"b" * 40], "png")
    (third,) = store.put([b"c" * 30], "png")  # 110 bytes
    assert store.get(first) is None
    found = store.get(second), store.get(third)
    assert [linked and len(linked.image) for linked in found] == [40, 30]
    more = store.put([b"d", b"e"], "png")  # four images
    kept = [name for name in (second, third, *more) if store.get(name)]
    assert kept == [third, *more] and len(set(kept)) == 3
    assert min(map(len, kept)) >= 43  # 256 bits in Base64


@pytest.mark.parametrize("images", [[b"a" * 101], [b"a"] * 4])
def test_what_has_no_room_is_refused(images: list[bytes]) -> None:
    store = Links(number=3, size=100, seconds=60)
    (kept,) = store.put([b"x"], "png")
    with pytest.raises(APIError) as error:
        store.put(images, "png")
    assert error.value.param == "response_format" and store.get(kept)


def test_the_bounds_of_the_server(engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the links does not grow with the requests; each link expires."""
    now, body = [0.0], {"prompt": "3", "n": 2, "response_format": "url"}
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bounds = Limits(links=3, link_seconds=60, token=TOKEN)
    with in_process(engine, bounds) as port:
        urls = []
        for _ in range(2):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/images/generations",
                json=body,
                timeout=60,
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            urls += [image["url"] for image in answer.raise_for_status().json()["data"]]
        assert [httpx.get(url).status_code for url in urls] == [404, 200, 200, 200]
        now[0] = 59.5
        assert httpx.get(urls[1]).headers["cache-control"] == "private, max-age=0"
        now[0] = 60.0
        assert [httpx.get(url).status_code for url in urls] == [404] * 4
