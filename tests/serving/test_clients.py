"""The clients people have: OpenAI's for Node, LiteLLM, LangChain, and what Open WebUI sends."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.serving.servers import TOKEN, Server, export, serve

NODE = """
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.URL, apiKey: process.env.TOKEN, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const asked = { model, prompt: "3", size: "48x48", seed: 4 };
const whole = await client.images.generate({ ...asked, quality: "hd", user: "somebody" });
const link = await client.images.generate({ ...asked, response_format: "url" });
const events = [];
const stream = await client.images.generate({ ...asked, stream: true, partial_images: 2 });
for await (const event of stream) events.push(event.type);
const refused = await client.images.generate({ ...asked, size: "48x47" }).catch((e) => e);
console.log(JSON.stringify({
  whole: whole.data[0].b64_json,
  url: link.data[0].url,
  retrieved: (await client.models.retrieve(model)).id,
  events,
  refused: [refused.status, refused.param, refused.message],
}));
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(export(tmp_path_factory.mktemp("square"), grid=[6, 6]), "--any-model") as running:
        yield running


def scaled(server: Server, size: int) -> Image.Image:
    image = Image.open(io.BytesIO(server.offline(3, 4)))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def decoded(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def test_openai_for_python(server: Server) -> None:
    """Every field that its signature has."""
    client = server.client()
    answer = client.images.generate(
        prompt="3",
        model="dall-e-3",
        n=1,
        size="1024x1024",
        quality="hd",
        style="natural",
        moderation="low",
        background="opaque",
        output_format="jpeg",
        output_compression=80,
        response_format="url",
        user="somebody",
        extra_body={"seed": 4},
    )
    assert answer.data and answer.data[0].url and answer.data[0].b64_json is None
    assert (answer.size, answer.output_format, answer.quality) == ("1024x1024", "jpeg", "hd")
    image = Image.open(io.BytesIO(httpx.get(answer.data[0].url).content))
    assert (image.format, image.size) == ("JPEG", (1024, 1024))


@pytest.mark.network
def test_openai_for_node(server: Server, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    install = [npm, "install", "--no-audit", "--no-fund", "openai"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("npm cannot fetch the package openai")
    (tmp_path / "client.mjs").write_text(NODE)
    env = {**os.environ, "URL": f"{server.url}/v1", "TOKEN": TOKEN}
    run = subprocess.run(
        [node, "client.mjs"], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert decoded(said["whole"]).tobytes() == scaled(server, 48).tobytes()
    linked = Image.open(io.BytesIO(httpx.get(said["url"]).content))
    assert linked.tobytes() == scaled(server, 48).tobytes()
    assert said["retrieved"] == "generator"
    assert said["events"] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    status, param, message = said["refused"]
    assert (status, param) == (400, "size") and "any square up to 2048x2048" in message


def test_litellm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm", reason="needs litellm")
    # It refuses response_format itself, for any model of OpenAI's kind.
    for model, kind in (("generator", "b64_json"), ("dall-e-3", "url")):
        answer = litellm.image_generation(
            model=f"openai/{model}",
            prompt="3",
            n=1,
            size="1024x1024",
            quality="standard",
            user="somebody",
            api_base=f"{server.url}/v1",
            api_key=TOKEN,
            seed=4,
        )
        (image,) = answer.data
        if kind == "url":
            found = Image.open(io.BytesIO(httpx.get(image.url).content))
        else:
            found = decoded(image.b64_json)
        assert found.tobytes() == scaled(server, 1024).tobytes()


def test_langchain(server: Server) -> None:
    """Its wrapper asks for 1024x1024, says no format and needs a link."""
    name = "langchain_community.utilities.dalle_image_generator"
    module = pytest.importorskip(name, reason="needs langchain-community")
    # By default of dall-e-2.
    wrapper = module.DallEAPIWrapper(api_key=TOKEN, base_url=f"{server.url}/v1", max_retries=0)
    url = wrapper.run("3")
    assert url.startswith(server.url)
    assert Image.open(io.BytesIO(httpx.get(url).content)).size == (1024, 1024)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("dall-e-2", "url"), ("dall-e-3", "url"), ("gpt-image-1", "b64_json"), (None, "b64_json")],
)
def test_the_answer_of_a_request_that_says_no_format(
    server: Server, model: str | None, kind: str
) -> None:
    """As OpenAI's models of these names answer: their clients read one or the other."""
    answer = server.post({"prompt": "3", "model": model}).raise_for_status()
    assert set(answer.json()["data"][0]) == {kind, "seed"}
    streamed = server.post({"prompt": "3", "model": model, "stream": True}).raise_for_status()
    assert "b64_json" in streamed.text


def test_links_by_default(tmp_path: Path) -> None:
    """For clients that ask for the model by its own name, and need links."""
    with serve(export(tmp_path), "--response-format", "url") as server:
        for body, kind in (({}, "url"), ({"response_format": "b64_json"}, "b64_json")):
            answer = server.post({"prompt": "3", **body}).raise_for_status()
            assert set(answer.json()["data"][0]) == {kind, "seed"}


OPEN_WEBUI: list[dict[str, Any]] = [
    {"model": "dall-e-2", "prompt": "3", "n": 1, "size": "512x512", "response_format": "b64_json"},
    {"model": "dall-e-3", "prompt": "3", "n": 1, "size": "1024x1024",
     "response_format": "b64_json"},
    {"model": "gpt-image-1", "prompt": "3", "n": 1, "size": "1024x1024"},
    {"model": "gpt-image-1", "prompt": "3", "n": 1},
    {"model": "gpt-image-1.5", "prompt": "3", "n": 2, "size": "auto"},
    {"model": "generator", "prompt": "3", "n": 1, "size": "512x512", "response_format": "b64_json",
     "quality": "standard", "style": "vivid"},  # with parameters that an administrator adds
]  # fmt: skip


@pytest.mark.parametrize("body", OPEN_WEBUI)
def test_what_open_webui_sends(server: Server, body: dict[str, Any]) -> None:
    """With headers of the user beside; it reads url or else b64_json."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    headers |= {"X-OpenWebUI-User-Name": "somebody", "X-OpenWebUI-User-Id": "1"}
    content = json.dumps(body)
    url = f"{server.url}/v1/images/generations"
    answer = httpx.post(url, content=content, headers=headers, timeout=60).raise_for_status()
    images = answer.json()["data"]
    assert len(images) == body["n"]
    for image in images:
        assert "url" not in image
        asked = body.get("size", "auto")
        size = 24 if asked == "auto" else int(asked.partition("x")[0])
        assert decoded(image["b64_json"]).size == (size, size)
