"""uvicorn's connection over h11, which waits for its client without limit, with limits."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lgpl.serving import limits
from lgpl.serving.errors import APIError


class Connection(H11Protocol):
    """Closes where there are too many, and where the client owes the rest of a request too long.

    How long a client waits for its answer is not this one's matter, and the time for a body that
    the app wants to read is `limits.LimitBody`'s.
    """

    _owed: str | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS:
            self.logger.warning("A connection is refused: %d are open.", limits.CONNECTIONS)
            transport.close()
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux's: it watches what the client takes
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
        """Begin or end the client's time, where what it owes is not what it was: bytes that come
        one by one do not move the deadline."""
        owed = self._now_owed()
        if owed == self._owed:
            return
        self._owed = owed
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if owed is not None:
            seconds = limits.HEADER_SECONDS if owed == "headers" else limits.IDLE_SECONDS
            self._deadline = self.loop.call_later(seconds, self._give_up)

    def _now_owed(self) -> str | None:
        if self.conn.their_state is h11.IDLE:
            return "headers"
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "body"  # that nobody wants; closed at once, the answer might be lost
        return None

    def _give_up(self) -> None:
        has_begun = self._owed == "headers" and self.conn.trailing_data[0]
        if has_begun and not self.transport.is_closing():
            said = f"The headers did not come within {limits.HEADER_SECONDS:g} seconds."
            self._refuse(APIError(408, said, None, "request_timeout"))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is refused in the API's form, too."""
        self._refuse(APIError(400, msg, None, "bad_request"))

    def _refuse(self, error: APIError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # nothing was answered yet
            body = error.response().body
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            reason = HTTPStatus(error.status).phrase
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=bytes(body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
