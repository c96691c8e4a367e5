"""`lgpl serve` as a process of its own, with real clients over loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException

from lgpl.cli import main
from lgpl.generator import Sampling
from lgpl.serving import limits
from lgpl.serving.limits import LimitBody
from tests.conftest import Chain, wait_until
from tests.serving.servers import GATED, TOKEN, Server, export, serve
from tests.test_readme import SERVING, blocks


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = export(tmp_path_factory.mktemp("fast"))
    with serve(folder, "--batch-size", "4", program=GATED) as running:
        yield running


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Server]:
    few = ("--batch-size", "1", "--queue", "2", "--max-images", "2")
    with serve(export(tmp_path), *few, program=GATED) as running:
        yield running


def test_images_of_the_openai_client(server: Server, tmp_path: Path) -> None:
    """They equal the files of `lgpl sample` bit for bit."""
    answer = server.client().images.generate(
        prompt="7",
        n=3,
        size="auto",
        response_format="b64_json",
        extra_body={"seed": 5, "guidance": 2.0, "top_k": 20},
    )
    assert answer.data and len(answer.data) == 3 and answer.usage
    for i, image in enumerate(answer.data):
        out = tmp_path / f"{i}.png"
        main(
            ["sample", "--checkpoint", str(server.checkpoint), "--label", "7", "--seed", str(5 + i),
             "--guidance", "2", "--top-k", "20", "--out", str(out)]
        )  # fmt: skip
        assert base64.b64decode(image.b64_json or "") == out.read_bytes()
    (model,) = server.client().models.list().data
    assert model.id == "generator"


def test_the_readmes_client(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks(SERVING, "python") if "import openai" in block]
    monkeypatch.chdir(tmp_path)
    code = code.replace("http://127.0.0.1:8000", server.url)
    exec(code.replace("none unless LGPL_TOKEN is set", TOKEN), {})
    assert Path("seven.png").read_bytes() == server.offline(7, 7, Sampling(guidance=2.0))


def test_many_users_at_once(server: Server) -> None:
    """No answer is lost or mixed up, and images of different users are drawn together, whatever
    they ask for."""
    before = [server.metric(f"lgpl_batch_images_{part}") for part in ("sum", "count")]

    def ask(i: int) -> bytes:
        body = {"prompt": str(i % 10), "seed": i, "guidance": 1.0 + i % 5, "top_k": i % 3}
        return base64.b64decode(server.post(body).raise_for_status().json()["data"][0]["b64_json"])

    server.gate.unlink()
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(ask, i) for i in range(24)]
        wait_until(lambda: server.accepted() - before[0] == 24)
        server.gate.touch()
    for i, answer in enumerate(answers):
        assert answer.result() == server.offline(
            i % 10, i, Sampling(guidance=1.0 + i % 5, top_k=i % 3)
        )
    images, batches = (
        server.metric(f"lgpl_batch_images_{part}") - was
        for part, was in zip(("sum", "count"), before, strict=True)
    )
    assert images == 24 and batches <= 13  # one seat is free again before the others


def test_random_seed_is_returned(server: Server) -> None:
    first, second = (server.post({"prompt": "1"}).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert base64.b64decode(first["b64_json"]) == server.offline(1, first["seed"])


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_schedule": "power-cosine", "guidance_power": 1.5},
        {"guidance_schedule": "linear", "guidance_start": 5},
        {"guidance_steps": 9},
    ],
)
def test_schedules_of_guidance(server: Server, changes: dict[str, Any]) -> None:
    answer = server.post({"prompt": "4", "seed": 2, "guidance": 4, **changes}).raise_for_status()
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert png == server.offline(4, 2, Sampling(guidance=4, **changes))
    assert png != server.offline(4, 2, Sampling(guidance=4))


def test_defaults_of_the_command_line(tmp_path: Path) -> None:
    """Fields of a request override the options; the others default to them."""
    options = ["--guidance", "4", "--guidance-schedule", "power-cosine", "--guidance-power", "1.5"]
    options += ["--guidance-start", "3", "--guidance-steps", "20", "--top-k", "30"]
    defaults = Sampling(4.0, 20, 1.0, 30, 1.0, "power-cosine", 1.5, 3)
    with serve(export(tmp_path), *options) as server:
        for body, sampling in (
            ({}, defaults),
            ({"guidance_schedule": "constant"}, replace(defaults, guidance_schedule="constant")),
        ):
            answer = server.post({"prompt": "4", "seed": 2, **body}).raise_for_status()
            png = base64.b64decode(answer.json()["data"][0]["b64_json"])
            assert png == server.offline(4, 2, sampling)


def test_stream_fills_in(server: Server) -> None:
    stream = server.client().images.generate(
        prompt="3", stream=True, partial_images=2, extra_body={"seed": 9}
    )
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]  # type: ignore[union-attr]
    assert last.type == "image_generation.completed"
    assert base64.b64decode(last.b64_json) == server.offline(3, 9)
    rows = []
    for event in partial:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json))))
        rows.append(int((pixels != 128).any(axis=(1, 2)).sum()))
    assert rows == [8, 16]  # of 24, the rest is grey
    every = {"prompt": "3", "stream": True, "partial_images": 64}  # of 6 rows
    assert server.post(every).text.count("event: image_generation.partial_image") == 5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "10"}, "prompt"),
        ({"prompt": "a dog"}, "prompt"),
        ({"prompt": "1" * 5000}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "1", "size": "1024x1024"}, "size"),
        ({"prompt": "1", "n": 11}, "n"),
        ({"prompt": "1", "n": 0}, "n"),
        ({"prompt": "1", "n": 2, "stream": True}, "n"),
        ({"prompt": "1", "guidance": "much"}, "guidance"),
        ({"prompt": "1", "guidance": -1}, "guidance"),
        ({"prompt": "1", "guidance_schedule": "steep"}, "guidance_schedule"),
        ({"prompt": "1", "guidance_power": 0}, "guidance_power"),
        ({"prompt": "1", "guidance_start": 1.5}, "guidance_start"),
        ({"prompt": "1", "guidance_steps": -1}, "guidance_steps"),
        ({"prompt": "1", "temperature": -1}, "temperature"),
        ({"prompt": "1", "top_p": 0}, "top_p"),
        ({"prompt": "1", "seed": 2**63}, "seed"),
        ({"prompt": "1", "model": "dall-e-3"}, "model"),
        ({"prompt": "1", "response_format": "file"}, "response_format"),
        ({"prompt": "1", "partial_images": 2}, "partial_images"),
        ({"prompt": "1", "colour": "red"}, "colour"),
    ],
)
def test_bad_field_is_named(server: Server, body: dict[str, Any], param: str) -> None:
    answer = server.post(body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    assert param in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"no json", 400),
        (b'{"prompt": "1", "guidance": NaN}', 400),
        (rb'{"prompt": "\ud800"}', 400),
        (rb'{"prompt": "1", "\ud800": 1}', 400),
        (b"[" * 60000, 400),
        (b"\xff\xfe", 400),
        (b'{"prompt": "' + b"x" * 2**17 + b'"}', 413),
    ],
)
def test_bad_bodies_are_refused(server: Server, content: bytes, status: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = server.post(None, content=content, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client can hold a connection, or delay the end of the server, for ever."""
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)

    async def reads(_: Any, receive: Any, __: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def half() -> dict[str, Any]:
        parts.append(1)
        if len(parts) > 1:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"{", "more_body": True}

    parts: list[int] = []
    with pytest.raises(HTTPException, match="408"):
        asyncio.run(LimitBody(reads)({}, half, half))


def test_token(server: Server) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = server.post({"prompt": "1"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    lower = {"Authorization": f"bearer {TOKEN}"}  # a scheme has no case
    assert httpx.get(f"{server.url}/v1/models", headers=lower).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="wrong").models.list()
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_metrics_are_prometheus(server: Server) -> None:
    server.post({"prompt": "1", "n": 2}).raise_for_status()
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    kinds = {name: f.type for name, f in families.items() if not name.endswith("_created")}
    assert kinds == {
        "lgpl_requests": "counter",
        "lgpl_images": "counter",
        "lgpl_request_seconds": "histogram",
        "lgpl_batch_images": "histogram",
        "lgpl_waiting_images": "gauge",
    }
    answered = {s.labels["status"]: s.value for s in families["lgpl_requests"].samples if s.labels}
    assert answered["200"] >= 1 and families["lgpl_images"].samples[0].value >= 2


def test_fuzzed_by_its_own_schema(server: Server, tmp_path: Path) -> None:
    """No request causes a server error or an answer outside the schema."""
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance"
    run = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json",
         "--checks", checks, "--max-examples", "20", "--phases", "examples,coverage,fuzzing",
         "--seed", "1", "-H", f"Authorization: Bearer {TOKEN}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


@pytest.mark.slow
def test_text(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "pizza.png"
    with serve(Path(chain.stage2)) as server:
        answer = server.post({"prompt": "Pizza ", "seed": 3, "guidance": 2}).raise_for_status()
        for prompt in (" ", "word " * 100):
            error = server.post({"prompt": prompt}).json()["error"]
            assert error["param"] == "prompt" and "The prompt" in error["message"]
    main(
        ["sample", "--checkpoint", chain.stage2, "--prompt", "Pizza ", "--seed", "3",
         "--guidance", "2", "--out", str(out)]
    )  # fmt: skip
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == out.read_bytes()
    assert answer.json()["usage"]["output_tokens"] == 64


@pytest.mark.slow
def test_full_queue_and_leaving(narrow: Server) -> None:
    body = {"prompt": "1", "seed": 1}
    narrow.gate.unlink()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(narrow.post, body) for _ in range(8)]
        wait_until(lambda: sum(future.done() for future in futures) >= 5)  # refused
        narrow.gate.touch()
        answers = [future.result() for future in futures]
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) in (5, 6) and all(a.status_code in (200, 429) for a in answers)
    assert full[0].json()["error"]["code"] == "queue_full" and full[0].headers["Retry-After"]
    done = narrow.metric("lgpl_images_total")
    narrow.gate.unlink()
    with pytest.raises(httpx.ReadTimeout):
        narrow.post({**body, "n": 2}, timeout=0.3)  # and hangs up
    wait_until(lambda: narrow.metric('lgpl_requests_total{status="499"}') == 1)
    narrow.gate.touch()
    assert narrow.post(body).status_code == 200
    assert narrow.metric("lgpl_images_total") == done + 1
    with narrow.client().images.generate(prompt="1", stream=True, partial_images=3) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    assert narrow.post(body).status_code == 200


@pytest.mark.slow
def test_sigterm_finishes_what_runs(narrow: Server) -> None:
    narrow.gate.unlink()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(narrow.post, {"prompt": "2", "seed": i}) for i in range(2)]
        wait_until(lambda: narrow.accepted() == 2)
        narrow.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("Shutting down" in line for line in narrow.log))
        narrow.gate.touch()
        pngs = [base64.b64decode(a.result().json()["data"][0]["b64_json"]) for a in futures]
    assert pngs == [narrow.offline(2, i) for i in range(2)]
    narrow.process.wait(30)
    assert not any("Traceback" in line for line in narrow.log)


@pytest.mark.slow
def test_timeout(tmp_path: Path) -> None:
    with serve(export(tmp_path), "--timeout", "0.2", program=GATED) as server:
        server.gate.unlink()
        answer = server.post({"prompt": "1"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        streamed = server.post({"prompt": "1", "stream": True}).text
        assert streamed.startswith("event: error") and '"code": "timeout"' in streamed
        server.gate.touch()
