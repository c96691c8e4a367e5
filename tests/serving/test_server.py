"""The process of a server, and how it ends."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from lgpl.serving import limits
from lgpl.serving.server import Server, run
from tests.serving.servers import export, serve, wait_until

DIES = """
import os, time
from lgpl.cli import main
from lgpl.serving import sampler

def dies(*_, **__):
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.05)
    raise SystemExit("a fault")

sampler.Group = dies
main()
"""


def test_a_server_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a client has sent only half of its request."""
    monkeypatch.setattr(limits, "ENDED_SECONDS", 0.5)
    engine: Any = SimpleNamespace(alive=True, failure=None)
    app, reads, ended = FastAPI(), threading.Event(), threading.Event()

    @app.post("/")
    async def half(request: Request) -> None:
        reads.set()
        await request.body()

    def die(port: int) -> None:
        with connected(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
            assert reads.wait(30)
            engine.failure, engine.alive = RuntimeError("a fault"), False
            assert ended.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        death = pool.submit(die, port)
        with pytest.raises(SystemExit) as end:  # of status 1: its argument is a text
            run(app, engine, "127.0.0.1", port, 600)
        ended.set()
        death.result()
    assert end.value.code == "lgpl: error: the engine has ended: RuntimeError('a fault')"


def connected(port: int) -> socket.socket:
    """Connect to a server that may still be starting."""
    for _ in range(600):
        with contextlib.suppress(ConnectionError):
            return socket.create_connection(("127.0.0.1", port), 30)
        time.sleep(0.05)
    raise AssertionError("there is no server")


@pytest.mark.slow
def test_a_process_ends_with_its_engine(tmp_path: Path) -> None:
    """All clients are answered, the cause is logged, and the exit status is 1."""
    one = ("--batch-size", "1")
    with serve(export(tmp_path), *one, program=DIES) as server, ThreadPoolExecutor(3) as pool:
        server.gate.unlink()
        futures = [pool.submit(server.post, {"prompt": "1", "seed": i}) for i in range(3)]
        wait_until(lambda: httpx.get(f"{server.url}/health").json()["waiting"] == 2)
        server.gate.touch()
        answers = [future.result(10) for future in futures]
        assert server.process.wait(20) == 1
        wait_until(lambda: "a fault" in server.log[-1])
    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.json()["error"]["code"] for answer in answers} == {"engine_ended"}
    assert server.log[-1] == "lgpl: error: the engine has ended: SystemExit('a fault')\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 10_000), (3560, 10_000)),
        ((1024, -1), (3560, -1)),
        ((1024, 2000), (2000, 2000)),
        ((20_000, 20_000), None),
        ((-1, -1), None),
    ],
)
def test_the_process_may_open_a_file_for_each_connection(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: given.append(limit))
    monkeypatch.setattr(Server, "run", lambda server: None)
    run(FastAPI(), SimpleNamespace(failure=None), "127.0.0.1", 0, 600)  # type: ignore[arg-type]
    assert given == ([] if after is None else [after])


@pytest.mark.slow
def test_clients_beyond_the_limit_are_refused_and_the_others_served(tmp_path: Path) -> None:
    """In a process that starts with the usual limit of 1024 files."""
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = limits.CONNECTIONS + 500
    if 0 <= hard < 2 * more:
        pytest.skip("a process may not open so many files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    clients: list[socket.socket] = []
    try:
        with serve(export(tmp_path)) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (2 * more, hard))
            port = int(server.url.rpartition(":")[2])
            clients += [socket.create_connection(("127.0.0.1", port), 30) for _ in range(more)]
            served = 0
            for client in clients:
                try:
                    client.sendall(health)
                    served += client.recv(100).startswith(b"HTTP/1.1 200")
                except ConnectionError:
                    pass
            assert served == limits.CONNECTIONS
            assert not any("Traceback" in line for line in server.log)
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
