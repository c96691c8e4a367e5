"""An HTTP server on loopback whose faults are chosen."""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class Server(ThreadingHTTPServer):
    """Serves a folder on loopback; a share of the requests goes wrong in one of three ways.

    Attributes:
        folder: of the files.
        failing: share of the requests that go wrong.
        redirects: where the server sends on to, by path.
        login: what a client must give, in base 64.
        headers: of each request, by path.
    """

    daemon_threads = True

    def __init__(self, folder: Path, failing: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.failing, self.rng = folder, failing, random.Random(0)
        self.requests: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.redirects: dict[str, str] = {}
        self.login = ""
        self.headers: dict[str, Any] = {}
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Clients that give up are meant here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.server.folder / unquote(self.path.partition("?")[0].lstrip("/"))
        self.server.requests[self.path] += self.command == "GET"
        self.server.headers[self.path] = dict(self.headers)
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.login and self.headers["Authorization"] != f"Basic {self.server.login}":
            self.send_error(401)
            return
        fault = None
        if self.server.rng.random() < self.server.failing:
            fault = self.server.rng.choice(("error", "drop", "stall"))
            self.server.failed[fault] += 1
        if fault == "error" or not path.is_file():
            self.send_error(500 if fault else 404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if fault else data)
        if fault == "stall":
            self.server.stop.wait(30)

    def log_message(self, *_: Any) -> None: ...
