"""Slow clients and too many connections, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from lgpl.serving import limits, sampler
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import in_process, wait_until

LATE = 0.8  # seconds that a client has
PATIENCE = 10  # after which a test gives up, on a busy machine
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
)


@pytest.fixture
def port(engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server with short time limits."""
    for name in ("HEADER_SECONDS", "IDLE_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(limits, name, LATE)
    monkeypatch.setattr(engine, "close", lambda: None)  # it serves the next test, too
    with in_process(engine) as found:
        yield found


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        yield connection


def drip(connection: socket.socket, byte: bytes = b"x") -> tuple[float, bytes]:
    """Send a byte every 50 ms until the server closes; return the seconds and the answer."""
    begun, received = time.monotonic(), b""
    connection.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < begun + PATIENCE:
            connection.sendall(byte)
            with contextlib.suppress(TimeoutError):
                chunk = connection.recv(100_000)
                received += chunk
                if not chunk:
                    break
    return time.monotonic() - begun, received


def read(received: bytes) -> tuple[int, Any]:
    """The status and the JSON of one answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def ask(connection: socket.socket, request: bytes) -> tuple[int, Any]:
    connection.sendall(request)
    received = connection.recv(100_000)
    while not received.endswith(b"}"):
        chunk = connection.recv(100_000)
        assert chunk, received
        received += chunk
    return read(received)


def is_closed(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    begun = time.monotonic()
    with connected(port) as silent:
        assert is_closed(silent) and LATE - 0.1 < time.monotonic() - begun < PATIENCE


@pytest.mark.parametrize("before", [b"", HEALTH[:-2] + b"X-Long: "])
def test_headers_that_come_byte_by_byte_are_given_up(port: int, before: bytes) -> None:
    with connected(port) as slow:
        slow.sendall(before)
        seconds, received = drip(slow)
        assert LATE - 0.1 < seconds < PATIENCE
        status, body = read(received)
        assert status == 408 and body["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("pause", [0.0, LATE / 2])
def test_later_requests_of_a_connection_have_the_same_time(port: int, pause: float) -> None:
    with connected(port) as slow:
        for _ in range(3):
            assert ask(slow, HEALTH)[0] == 200
        time.sleep(pause)
        slow.sendall(HEALTH[:20])
        seconds, received = drip(slow)
        assert seconds < PATIENCE and read(received)[0] == 408


def test_pipelined_requests_have_the_same_time(port: int) -> None:
    with connected(port) as slow:
        slow.sendall(HEALTH + HEALTH + HEALTH[:20])
        seconds, received = drip(slow)
        assert seconds < PATIENCE and received.count(b"HTTP/1.1 200") == 2


def test_an_idle_connection_is_closed(port: int) -> None:
    with connected(port) as idle:
        assert ask(idle, HEALTH)[0] == 200
        begun = time.monotonic()
        assert is_closed(idle) and time.monotonic() - begun < PATIENCE


def test_a_body_that_comes_byte_by_byte_is_given_up(port: int) -> None:
    """The rest of the body after the answer is limited, too."""
    with connected(port) as slow:
        slow.sendall(POST + b'{"prompt": "')
        seconds, received = drip(slow)
        assert 2 * LATE - 0.1 < seconds < PATIENCE
        status, body = read(received)
        assert status == 408 and "must arrive within" in body["error"]["message"]


@pytest.mark.parametrize("path", [b"/health", b"/nowhere", b"/"])
def test_the_rest_of_an_answered_request_is_not_waited_for(port: int, path: bytes) -> None:
    with connected(port) as slow:
        slow.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n" % path)
        seconds, received = drip(slow)
        assert seconds < PATIENCE and received.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    "received",
    [
        b"no HTTP\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_apis_format(port: int, received: bytes) -> None:
    with connected(port) as client:
        status, body = ask(client, received)
        assert status == 400 and set(body["error"]) == {"message", "type", "param", "code"}
        assert is_closed(client)


@pytest.mark.parametrize("stream", [False, True])
def test_waiting_for_an_image_has_no_limit(
    port: int, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Neither for one answer nor for a stream."""
    together = sampler.decode_together

    def slowly(*args: Any) -> None:
        time.sleep(0.06)
        together(*args)

    monkeypatch.setattr(sampler, "decode_together", slowly)
    body = {"prompt": "1", "stream": stream, "partial_images": 3 if stream else None}
    begun = time.monotonic()
    answered = httpx.post(
        f"http://127.0.0.1:{port}/v1/images/generations", json=body, timeout=60
    ).raise_for_status()
    assert time.monotonic() - begun > 2 * LATE
    if stream:
        assert answered.text.count("event: image_generation.") == 4
    else:
        assert answered.json()["data"]


def test_too_many_connections_are_closed_and_the_others_go_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS", 3)
    monkeypatch.setattr(limits, "HEADER_SECONDS", 60.0)
    monkeypatch.setattr(limits, "IDLE_SECONDS", 60)
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(connected(port)) for _ in range(3)]
        for connection in open_ones:
            assert ask(connection, HEALTH)[0] == 200
        for _ in range(5):
            with connected(port) as another:
                begun = time.monotonic()
                assert is_closed(another) and time.monotonic() - begun < PATIENCE
        for connection in open_ones:
            assert ask(connection, HEALTH)[0] == 200
        open_ones[0].close()

        def has_room() -> bool:
            with connected(port) as another, contextlib.suppress(ConnectionError):
                another.sendall(HEALTH)
                return another.recv(100).startswith(b"HTTP/1.1 200")
            return False

        wait_until(has_room)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
def test_an_answer_that_the_client_does_not_read_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "READ_SECONDS", 1.0)
    ended = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 2**16
                await asyncio.sleep(0)
        finally:
            ended.set()

    app = FastAPI()
    app.get("/endless")(lambda: StreamingResponse(endless()))
    engine: Any = SimpleNamespace(alive=True)
    with in_process(engine, app=app) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ended.wait(30)
