"""Requests with another site's Host are refused (DNS rebinding)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from lgpl.errors import UserError
from lgpl.serving.api import create_app
from lgpl.serving.limits import Limits, is_loopback, parse_host, trusted_host
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import in_process

HERE = ["localhost", "LOCALHOST:8000", "localhost:", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000",
        "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80"]  # fmt: skip
ELSEWHERE = ["evil.example", "evil.example:8000", "localhost.evil.example",
             "127.0.0.1.evil.example:80", "10.0.0.1", "0.0.0.0:8000", "[::]:80",
             "[2001:db8::1]:8000", "2130706433", "0x7f.1",
             "localhost.", "-"]  # fmt: skip
MALFORMED = ["", " ", "localhost:http", "localhost:8000:80", "localhost:123456", "::1", "[::1",
             "[::1]evil", "[localhost]", "[127.0.0.1]", "user@localhost", "localhost,evil.example",
             "localhost evil.example", ":8000", "localhost/", "caf\xe9"]  # fmt: skip
ROUTES = [
    ("GET", "/"), ("GET", "/page/model"), ("GET", "/page/script.js"), ("GET", "/openapi.json"),
    ("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/nowhere"),
    ("HEAD", "/"), ("OPTIONS", "/v1/images/generations"), ("POST", "/v1/images/generations"),
]  # fmt: skip


def ask(
    engine: SamplerEngine, route: tuple[str, str], hosts: list[str], *trusted: str, **options: Any
) -> httpx.Response:
    """The answer to a request with these Host headers."""
    limits = Limits(hosts=frozenset(map(trusted_host, trusted)))
    app = create_app(engine, "generator", limits=limits)

    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            request = client.build_request(route[0], f"http://localhost{route[1]}", **options)
            del request.headers["host"]
            given = [(b"host", host.encode("latin-1")) for host in hosts]
            request.headers = httpx.Headers([*given, *request.headers.raw])
            return await client.send(request)

    return asyncio.run(one())


@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_served_by_every_name(engine: SamplerEngine, host: str) -> None:
    assert ask(engine, ("GET", "/health"), [host]).status_code == 200


@pytest.mark.parametrize("host", ELSEWHERE)
def test_another_host_is_refused(engine: SamplerEngine, host: str) -> None:
    answer = ask(engine, ("GET", "/health"), [host])
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], *([h] for h in MALFORMED)])
def test_a_missing_or_malformed_host_is_refused(engine: SamplerEngine, hosts: list[str]) -> None:
    answer = ask(engine, ("GET", "/health"), hosts)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_host"


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_guarded(
    engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch, route: tuple[str, str]
) -> None:
    """No job is queued."""
    drawn: list[Any] = []
    monkeypatch.setattr(engine.queue, "put", drawn.append)
    answer = ask(engine, route, ["evil.example"], json={"prompt": "1"})
    assert answer.status_code == 421 and drawn == []
    if route[0] != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_trusted_hosts_are_served_beside_this_machine(engine: SamplerEngine) -> None:
    trusted = ("Images.example.org", "2001:DB8::1", "10.0.0.1")
    for host in ("images.example.org", "IMAGES.example.org:443", "[2001:db8:0::1]:8000",
                 "10.0.0.1:80", "localhost", "[::1]"):  # fmt: skip
        assert ask(engine, ("GET", "/health"), [host], *trusted).status_code == 200
    for host in ("example.org", "x.images.example.org", "[2001:db8::2]", "10.0.0.2"):
        assert ask(engine, ("GET", "/health"), [host], *trusted).status_code == 421


@pytest.mark.parametrize("name", ["", "*", "*.example.org", "http://example.org", "example.org:80",
                                  "[::1]:80", "a b", "example.org/path"])  # fmt: skip
def test_a_malformed_host_cannot_be_trusted(name: str) -> None:
    with pytest.raises(UserError, match=r"--trusted-host must be .*, got"):
        trusted_host(name)


def test_addresses_to_listen_at() -> None:
    ours = ["127.0.0.1", "127.3.2.1", "::1", "localhost", "LocalHost", "::ffff:127.0.0.1"]
    assert all(map(is_loopback, ours))
    others = ["0.0.0.0", "::", "", "0", "10.0.0.1", "192.168.1.1", "fe80::1", "example.org"]
    assert not any(map(is_loopback, others))
    assert all(is_loopback(parse_host(host) or "") for host in HERE)


def test_ipv6_over_a_real_socket(engine: SamplerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "close", lambda: None)  # it serves other tests, too
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6")
    with in_process(engine, Limits(hosts=frozenset()), host="::1") as port:
        url = f"http://[::1]:{port}/health"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421
