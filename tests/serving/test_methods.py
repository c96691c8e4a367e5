"""Models by name, HEAD, other origins, and routes that do not exist, over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from lgpl.errors import UserError
from lgpl.serving.methods import origin_of
from tests.serving.servers import TOKEN, Server, export, serve

NAME, ORIGIN, OTHER = "quickstart/stage2", "https://app.example.org", "http://127.0.0.1:5173"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--name", NAME, "--cors-origin", ORIGIN, "--cors-origin", OTHER)
    with serve(export(tmp_path_factory.mktemp("model")), *options) as running:
        yield running


def test_a_model_by_its_name(server: Server) -> None:
    client = server.client()
    (listed,) = client.models.list().data
    assert listed.id == NAME and client.models.retrieve(NAME) == listed
    answer = httpx.get(f"{server.url}/v1/models/{NAME}", headers=RIGHT)  # the slash as it is
    assert answer.json()["id"] == NAME
    for other in ("dall-e-3", "quickstart", "quickstart/stage2/x"):
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve(other)
        assert (error.value.code, error.value.param) == ("model_not_found", "model")
        assert error.value.type == "invalid_request_error" and other in error.value.message
    assert httpx.get(f"{server.url}/v1/models/{NAME}").status_code == 401


def test_any_model(tmp_path: Path) -> None:
    with serve(export(tmp_path), "--any-model") as server:
        for model in ("dall-e-3", "gpt-image-1", "generator"):
            assert server.post({"prompt": "1", "model": model}).status_code == 200
            assert server.client().models.retrieve(model).id == model
        assert [model.id for model in server.client().models.list().data] == ["generator"]


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/v1/models", f"/v1/models/{NAME}", "/metrics", "/openapi.json",
     "/page/model", "/page/script.js", "/v1/models/other"],
)  # fmt: skip
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    got = httpx.get(server.url + path, headers=RIGHT)
    head = httpx.head(server.url + path, headers=RIGHT)
    assert head.status_code == got.status_code and head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which changes
        assert head.headers["content-length"] == got.headers["content-length"]
    if path.startswith("/v1"):
        assert httpx.head(server.url + path).status_code == 401


def allows(answer: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control")}


@pytest.mark.parametrize("origin", [ORIGIN, OTHER])
def test_a_page_of_an_allowed_origin(server: Server, origin: str) -> None:
    """The preflight carries no token; what it allows needs it."""
    url = f"{server.url}/v1/images/generations"
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-os"
    for given in ({}, RIGHT):
        preflight = httpx.options(url, headers={**asks, **given})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "POST" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"].split(",")
        assert {"authorization", "content-type", "x-stainless-os"} <= set(allowed)
    for given, status in ((RIGHT, 200), ({}, 401)):  # a script may read the refusal, too
        headers = {"Origin": origin, **given}
        answer = httpx.post(url, json={"prompt": "1"}, headers=headers, timeout=60)
        assert answer.status_code == status and "Origin" in answer.headers["vary"]
        assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://app.example.org", f"{ORIGIN}.evil.example",
     "https://APP.example.org:8443", f"{ORIGIN}/", ""],
)  # fmt: skip
def test_other_origins_get_no_header(server: Server, origin: str) -> None:
    url = f"{server.url}/v1/images/generations"
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(url, headers={**asks, **RIGHT})
    assert preflight.status_code == 405 and allows(preflight) == {}
    answer = httpx.get(f"{server.url}/v1/models", headers={"Origin": origin, **RIGHT})
    assert answer.status_code == 200 and allows(answer) == {}


def test_without_an_origin_there_is_no_header(server: Server) -> None:
    assert allows(httpx.get(f"{server.url}/health")) == {}


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://App.Example.org/", "https://app.example.org"),
        ("https://a.example:443", "https://a.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_origins_are_written_as_browsers_do(given: str, origin: str) -> None:
    assert origin_of(given) == origin


@pytest.mark.parametrize(
    "given", ["*", "a.example", "https://a.example/x", "ftp://a.example", "", "https://a:b", "null"]
)
def test_what_is_no_origin(given: str) -> None:
    with pytest.raises(UserError, match="--cors-origin must be an origin such as https://"):
        origin_of(given)


def test_what_is_not_offered_says_so(server: Server) -> None:
    """In OpenAI's format, though the client sends no JSON."""
    with pytest.raises(openai.NotFoundError) as error:
        server.client().post("/images/upscales", cast_to=object)
    assert error.value.type == "invalid_request_error" and error.value.code == "not_found"
    said = "/v1/images/upscales is not served here; POST /v1/images/ has generations, edits and"
    assert said in error.value.message


def test_other_methods_and_paths(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/images/generations")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    message = answer.json()["error"]["message"]
    assert message == "/v1/images/generations is served to POST only, got GET."
    error = httpx.post(f"{server.url}/v1/chat/completions", json={}).json()["error"]
    assert error["message"] == "/v1/chat/completions is not served here."
