"""The bytes of a URL: redirects, passwords, tags."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.store import Store
from lgpl.data.transfer import Unreachable, is_url, scheme, transfer


def body(url: str) -> bytes:
    found = io.BytesIO()
    transfer(url, found, 5)
    return found.getvalue()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b.tar", ""), ("/a:b.tar", ""), ("C:/a.tar", ""), ("HTTPS://host/a.tar", "https"),
        ("S3://bucket/a.tar", "s3"), ("pipe:cat a", "pipe"), ("PIPE:cat a", "pipe"),
        ("simplecache::s3://bucket/a.tar", "simplecache"),
    ],
)  # fmt: skip
def test_schemes(path: str, kind: str) -> None:
    assert scheme(path) == kind and is_url(path) == bool(kind)


def test_capital_letters_and_tags(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "a").write_bytes(b"content")
    url = serve(tmp_path).url
    found = io.BytesIO()
    tag = transfer(url.replace("http", "HTTP") + "/a", found, 5)
    assert found.getvalue() == b"content"
    assert tag == f'"{hashlib.md5(b"content").hexdigest()}"'
    assert body(f"FILE://{tmp_path}/a") == b"content"


def test_redirects_are_followed_to_http_alone(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    server, other = serve(tmp_path), serve(tmp_path)
    server.redirects = {
        "/relative": "/a",
        "/other": f"{other.url}/a",
        "/capital": f"{other.url}/a".replace("http", "HTTP"),
        "/file": f"file://{tmp_path}/secret",
        "/ftp": "ftp://127.0.0.1/secret",
        "/data": "data:,secret",
        "/local": "local:///etc/passwd",
        "/loop": "/loop",
        **{f"/{n}": f"/{n + 1}" for n in range(20)},
    }
    for name in ("relative", "other", "capital", "15"):
        if name == "15":
            server.redirects["/20"] = "/a"
        assert body(f"{server.url}/{name}") == b"content"
    for name in ("file", "ftp", "data", "local", "loop", "0"):
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="the server"):
            Store(retries=3).read(f"{server.url}/{name}")
        assert time.monotonic() - begin < 1.5, "another try does not help"  # three take 1.75 s


def test_passwords_are_sent_and_not_handed_on(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "a").write_bytes(b"content")
    server, other = serve(tmp_path), serve(tmp_path)
    server.login = base64.b64encode(b"me@home:p:w/d").decode()
    host = server.url.removeprefix("http://")
    with pytest.raises(Unreachable, match="401"):
        body(f"{server.url}/a")
    assert body(f"http://me%40home:p:w%2Fd@{host}/a?token=x/y&z=%20") == b"content"
    assert "/a?token=x/y&z=%20" in server.requests
    server.redirects["/b"] = f"{other.url}/a"
    assert body(f"http://me%40home:p:w%2Fd@{host}/b") == b"content"
    assert "Authorization" not in other.headers["/a"]


@pytest.mark.parametrize(
    "url", ["http://[::1/a.tar", "http://host:port/a.tar", "http://ho\nst/a.tar"]
)
def test_what_is_no_url(url: str) -> None:
    begin = time.monotonic()
    with pytest.raises(OSError):
        Store(retries=0).read(url)
    assert time.monotonic() - begin < 5


def test_what_is_read_past_the_cache_has_a_limit(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgpl.data.store.LARGEST_READ", 1000)
    (tmp_path / "a.json").write_bytes(b"x" * 1001)
    with pytest.raises(Unreachable, match="more than 1000 bytes"):
        Store().read(f"{serve(tmp_path).url}/a.json")
