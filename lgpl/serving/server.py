"""The process of a server: uvicorn, which ends with the engine."""

from __future__ import annotations

import contextlib
import math
import resource
import sys

import uvicorn
from fastapi import FastAPI

from lgpl.serving import limits
from lgpl.serving.connection import Connection
from lgpl.serving.engine import Engine


class Server(uvicorn.Server):
    """Ends by itself where the engine has ended: a supervisor can start it anew, it cannot.

    Args:
        app: over the engine.
        engine: that the app draws with.
        host: address to listen at.
        port: 0 takes any free one.
        seconds: until a request is given up.
    """

    def __init__(self, app: FastAPI, engine: Engine, host: str, port: int, seconds: float) -> None:
        self.engine = engine
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="info",
            http=Connection,
            ws="none",
            backlog=limits.BACKLOG,
            timeout_keep_alive=limits.IDLE_SECONDS,
            # A client that does not read its answer keeps the server from ending no longer.
            timeout_graceful_shutdown=math.ceil(seconds),
        )
        super().__init__(config)

    async def on_tick(self, counter: int) -> bool:
        if self.engine.alive:
            return await super().on_tick(counter)
        self.config.timeout_graceful_shutdown = limits.ENDED_SECONDS
        return True


def run(app: FastAPI, engine: Engine, host: str, port: int, seconds: float) -> None:
    """Serve until a signal ends it.

    Raises:
        SystemExit: the engine has ended; of status 1, and with the cause.
    """
    _allow_files()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C, after all is finished
        Server(app, engine, host, port, seconds).run()
    if engine.failure is not None:
        sys.exit(f"lgpl: error: the engine has ended: {engine.failure!r}")


def _allow_files() -> None:
    """Let the process open as many files as there may be connections, where it may say so itself.

    It often starts with 1024. A connection too many needs one, too, until some steps of the event
    loop later it is closed, and each step accepts as many as the backlog has.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS + 5 * limits.BACKLOG
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
