"""Content types, tokens and descriptions of the API, in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from lgpl.serving.api import create_app
from lgpl.serving.limits import Limits
from lgpl.serving.page import HEADERS
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import TOKEN

BODY = json.dumps({"prompt": "1"}).encode()


def ask(
    engine: SamplerEngine, method: str, path: str, token: str | None = None, **options: Any
) -> httpx.Response:
    app = create_app(engine, "generator", limits=Limits(token=token))

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "text/plain;charset=UTF-8", "text/json", "application/jsonx",
     "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*",
     "text/plain; application/json", "text/plain, application/json"],
)  # fmt: skip
@pytest.mark.parametrize("content", [BODY, b"", b"no json"])
def test_what_a_page_of_another_site_may_send_is_not_drawn(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch, kind: str | None, content: bytes
) -> None:
    """Browsers send JSON to another site only after a preflight, which is refused."""
    drawn: list[Any] = []
    monkeypatch.setattr(engine.queue, "put", drawn.append)
    headers = {} if kind is None else {"Content-Type": kind}
    answer = ask(engine, "POST", "/v1/images/generations", headers=headers, content=content)
    assert answer.status_code == 415 and drawn == []
    assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", "application/json ; charset=utf-8"]
)
def test_json_is_drawn(engine: SamplerEngine, kind: str) -> None:
    headers = {"Content-Type": kind}
    answer = ask(engine, "POST", "/v1/images/generations", headers=headers, content=BODY)
    assert answer.status_code == 200


def test_a_preflight_of_another_site_is_refused(engine: SamplerEngine) -> None:
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = ask(engine, "OPTIONS", "/v1/images/generations", headers=asks)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_token_is_checked_before_the_content_type(engine: SamplerEngine) -> None:
    answer = ask(engine, "POST", "/v1/images/generations", TOKEN, content=BODY)
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_page_takes_scripts_from_elsewhere(
    engine: SamplerEngine, path: str, token: str | None
) -> None:
    assert ask(engine, "GET", path, token).status_code == 404


def test_the_description_is_behind_the_token(engine: SamplerEngine) -> None:
    for given in ({}, {"Authorization": "Bearer wrong"}):
        assert ask(engine, "GET", "/openapi.json", TOKEN, headers=given).status_code == 401
    right = {"Authorization": f"Bearer {TOKEN}"}
    for answer in (
        ask(engine, "GET", "/openapi.json", TOKEN, headers=right),
        ask(engine, "GET", "/openapi.json"),
    ):
        assert answer.status_code == 200 and "/v1/images/generations" in answer.json()["paths"]
        assert all(answer.headers[name] == value for name, value in HEADERS.items())
