"""Many clients of one real server: no answer is lost or mixed up, and no memory leaks."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_until
from tests.serving.generators import MINILM
from tests.serving.load import (
    SMALL,
    Seen,
    asked_of_classes,
    asked_of_text,
    load,
    resident,
)
from tests.serving.servers import GATED, LONG, TOKEN, Server, export, serve

pytestmark = pytest.mark.slow

CONNECTIONS, REQUESTS = 64, 2000
MEMORY = 32  # MiB that may be added between 500 and 2 000 requests: what an allocator keeps
IMPATIENT = httpx.Timeout(60, read=0.1)  # asks, and leaves while the gate is closed


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = export(tmp_path_factory.mktemp("classes"), **SMALL)
    with serve(folder, "--batch-size", "32", "--queue", "64") as running:
        yield running


def report(name: str, seen: Seen) -> None:
    memory = ", ".join(f"{mib:.0f} MiB after {n}" for n, mib in seen.memory.items())
    print(
        f"\n{name}: {len(seen.pngs)} requests in {seen.elapsed:.1f} s, p50 {seen.p50:.3f} s, "
        f"p95 {seen.p95:.3f} s, refused {seen.refused} times; {memory}"
    )


def test_every_answer_is_the_samplers(classes: Server) -> None:
    marks = (500, REQUESTS)
    seen = asyncio.run(load(classes, asked_of_classes, REQUESTS, CONNECTIONS, marks))
    report("classes", seen)
    assert len(seen.pngs) == REQUESTS
    for i, png in seen.pngs.items():
        prompt, seed = asked_of_classes(i)
        assert png == classes.offline(int(prompt), seed), i
    assert seen.memory[REQUESTS] - seen.memory[500] < MEMORY
    families = text_string_to_metric_families(httpx.get(f"{classes.url}/metrics").text)
    values = {sample.name: sample.value for f in families for sample in f.samples}
    assert values["lgpl_images_total"] >= REQUESTS and values["lgpl_waiting_images"] == 0


def test_every_answer_to_text_is_the_samplers(tmp_path: Path) -> None:
    folder = export(tmp_path, MINILM, **SMALL)
    with serve(folder, "--batch-size", "32", "--queue", "64") as server:
        seen = asyncio.run(load(server, asked_of_text, 500, CONNECTIONS))
        report("text", seen)
        wanted = {
            futures: server.offline(*futures) for futures in {asked_of_text(i) for i in range(500)}
        }
    assert len(seen.pngs) == 500 and len(set(wanted.values())) == len(wanted)
    assert all(png == wanted[asked_of_text(i)] for i, png in seen.pngs.items())


def test_a_full_queue_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with serve(export(tmp_path, **SMALL), "--batch-size", "4", "--queue", "8") as server:
        seen = asyncio.run(load(server, asked_of_classes, 300, CONNECTIONS))
        report("queue of 8", seen)
        assert seen.refused > 0
        assert server.metric('lgpl_requests_total{status="429"}') == seen.refused
        assert server.metric('lgpl_requests_total{status="200"}') == 300
        for i, png in seen.pngs.items():
            prompt, seed = asked_of_classes(i)
            assert png == server.offline(int(prompt), seed), i


def test_sigterm_in_the_middle(tmp_path: Path) -> None:
    """Accepted requests are answered, further ones find no server, and it ends."""
    with serve(export(tmp_path, **LONG), "--batch-size", "4", "--queue", "64") as server:
        with ThreadPoolExecutor(24) as pool:
            futures = [
                pool.submit(server.post, {"prompt": "2", "seed": i}, timeout=600) for i in range(24)
            ]
            wait_until(lambda: server.accepted() == 24)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: any("Shutting down" in line for line in server.log))
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health")
            assert [future.result().status_code for future in futures] == [200] * 24
        server.process.wait(60)
        assert not any("Traceback" in line for line in server.log)


def test_clients_that_leave_and_clients_that_read_slowly(tmp_path: Path) -> None:
    """64 of each: cancelled jobs free the queue at once, and slow readers delay no other client."""
    model = export(tmp_path, **{**LONG, "grid": [16, 16]})
    with serve(model, "--batch-size", "64", "--queue", "64", program=GATED) as server:
        server.gate.unlink()
        left = asyncio.run(_leave(server))
        assert left == CONNECTIONS
        server.gate.touch()
        wait_until(lambda: server.metric("lgpl_waiting_images") == 0)
        for _ in range(2):  # with what a large batch takes and allocators keep
            _all_read_slowly(server)
        before = resident(server.process.pid)
        _all_read_slowly(server)
        assert resident(server.process.pid) - before < MEMORY
        assert server.metric("lgpl_images_total") == 3 * (1 + CONNECTIONS)


def _all_read_slowly(server: Server) -> None:
    """Behind another request, so that they are drawn in one batch each time."""
    server.gate.unlink()
    before = server.metric("lgpl_batch_images_sum")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.post, {"prompt": "1"})
        wait_until(lambda: server.metric("lgpl_batch_images_sum") == before + 1)
        events = pool.submit(asyncio.run, _read_slowly(server))
        wait_until(lambda: server.metric("lgpl_waiting_images") == CONNECTIONS)
        server.gate.touch()
        assert first.result().status_code == 200 and events.result() == [4] * CONNECTIONS


async def _leave(server: Server) -> int:
    """Ask, and hang up before the answer: half of them for a stream."""
    headers = {"Authorization": f"Bearer {TOKEN}"}

    async def one(i: int) -> int:
        body = {"prompt": "1", "seed": i, "stream": i % 2 == 0}
        async with httpx.AsyncClient(headers=headers, timeout=IMPATIENT) as client:
            try:
                await client.post(f"{server.url}/v1/images/generations", json=body)
            except httpx.TimeoutException:
                return 1
        return 0

    return sum(await asyncio.gather(*map(one, range(CONNECTIONS))))


async def _read_slowly(server: Server) -> list[int]:
    """Events that each of many streams brings, read a few bytes at a time."""
    headers = {"Authorization": f"Bearer {TOKEN}"}

    async def one(i: int) -> int:
        body = {"prompt": "1", "seed": i, "stream": True, "partial_images": 3}
        url, read = f"{server.url}/v1/images/generations", b""
        async with httpx.AsyncClient(headers=headers, timeout=600) as client:
            async with client.stream("POST", url, json=body) as answer:
                async for chunk in answer.aiter_raw(1024):
                    read += chunk
                    await asyncio.sleep(0.01)
        return read.count(b"event: image_generation.")

    return list(await asyncio.gather(*map(one, range(CONNECTIONS))))


@pytest.mark.skipif(shutil.which("hey") is None, reason="hey is not installed")
def test_another_client(classes: Server, tmp_path: Path) -> None:
    """hey, from Debian: every answer is 200, over 64 connections that are kept."""
    body = json.dumps({"prompt": "3", "seed": 1})
    run = subprocess.run(
        ["hey", "-n", "640", "-c", str(CONNECTIONS), "-m", "POST", "-T", "application/json",
         "-H", f"Authorization: Bearer {TOKEN}", "-d", body, "-t", "120",
         f"{classes.url}/v1/images/generations"],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    print(run.stdout)
    assert re.findall(r"\[(\d+)\]\s+(\d+) responses", run.stdout) == [("200", "640")]
