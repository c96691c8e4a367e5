"""A server of shards on loopback, and a store with a cache of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.store import Store
from tests.data.servers import Server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    servers = []

    def start(folder: Path, failing: float = 0.0) -> Server:
        server = Server(folder, failing)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(cache=str(tmp_path / "cache"), timeout=0.5, retries=8)
