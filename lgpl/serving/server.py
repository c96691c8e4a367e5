"""The process of a server: uvicorn with limits for slow clients, which ends with the engine."""

import asyncio
import contextlib
import math
import resource
import socket
import sys
from http import HTTPStatus

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lgpl.serving import limits
from lgpl.serving.engine import Engine
from lgpl.serving.errors import APIError


class Connection(H11Protocol):
    """uvicorn's connection over h11, which by itself waits for its client without limit.

    It closes where there are too many connections, and where the client owes the rest of a request
    for too long. `LimitBody` limits the time of a body that the app reads; nothing limits how long
    a client may wait for its answer.
    """

    _owed: str | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS:
            self.logger.warning("A connection is refused: %d are open.", limits.CONNECTIONS)
            transport.close()
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: closes where the client reads nothing
            milliseconds = int(limits.READ_SECONDS * 1000)
            connected = transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def _set_deadline(self) -> None:
        """Start or stop the client's time where what it owes has changed, not at every byte."""
        owed, seconds = None, 0.0
        if self.conn.their_state is h11.IDLE:
            owed, seconds = "headers", limits.HEADER_SECONDS
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            # Nobody reads it; but if closed at once, the answer might be lost.
            owed, seconds = "body", limits.IDLE_SECONDS
        if owed == self._owed:
            return
        self._owed = owed
        if self._deadline is not None:
            self._deadline.cancel()
        if owed is not None:
            self._deadline = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        has_begun = self._owed == "headers" and self.conn.trailing_data[0]
        if has_begun and not self.transport.is_closing():
            reason = f"The headers must arrive within {limits.HEADER_SECONDS:g} seconds."
            self._refuse(APIError(408, reason))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP in the API's format, too."""
        self._refuse(APIError(400, msg))

    def _refuse(self, error: APIError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            answer, status = error.response(), HTTPStatus(error.status_code)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=status.phrase),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Ends by itself after its engine, which cannot start again: a supervisor restarts the process.

    Port 0 takes any free one; `seconds` is the time until a request is given up.
    """

    def __init__(self, app: FastAPI, engine: Engine, host: str, port: int, seconds: float) -> None:
        self.engine = engine
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            ws="none",
            backlog=limits.BACKLOG,
            timeout_keep_alive=limits.IDLE_SECONDS,
            # A client that does not read its answer delays the end by no more than this.
            timeout_graceful_shutdown=math.ceil(seconds),
        )
        super().__init__(config)

    async def on_tick(self, counter: int) -> bool:
        if self.engine.alive:
            return await super().on_tick(counter)
        self.config.timeout_graceful_shutdown = limits.ENDED_SECONDS
        return True


def run(app: FastAPI, engine: Engine, host: str, port: int, seconds: float) -> None:
    """Serve until a signal ends it, or raise SystemExit with the cause of the engine's failure."""
    # The process needs a file for each connection and often starts with 1024. A connection beyond
    # the limit also needs one until it is closed, some steps of the event loop later; each step
    # accepts as many as the backlog holds.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS + 5 * limits.BACKLOG
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C, after everything has finished
        Server(app, engine, host, port, seconds).run()
    if engine.failure is not None:
        sys.exit(f"lgpl: error: the engine has ended: {engine.failure!r}")
