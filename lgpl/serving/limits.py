"""What a request may ask for, and how long a client may take."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 2**16  # bytes
BODY_SECONDS = 30.0  # until a body is there as a whole
HEADER_SECONDS = 20.0  # until the headers of a request are, from the end of the one before
IDLE_SECONDS = 5  # of a connection between two requests
READ_SECONDS = 60.0  # in which a client takes nothing of its answer
CONNECTIONS = 1000  # open at once; whatever comes then is closed
BACKLOG = 512  # connections that the server takes, or the system keeps for it, at a time
ENDED_SECONDS = 5  # that answers may still take when the engine has ended


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        images: pictures of one request.
        prompt: characters of a prompt.
        seconds: until a request is given up.
        token: that a request to /v1 must bear; None asks for none.
        hosts: that a request may name beside this machine's own; None takes any.
    """

    images: int = 10
    prompt: int = 4000
    seconds: float = 600.0
    token: str | None = None
    hosts: frozenset[str] | None = None


class LimitBody:
    """Refuses a body before it is read whole: one too large, or one that does not come."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, is_whole = 0, False
        deadline = time.monotonic() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal read, is_whole
            left = None if is_whole else max(0.0, deadline - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                said = f"The body did not come within {BODY_SECONDS:g} seconds."
                raise HTTPException(408, said) from None
            is_whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise HTTPException(413, f"The body is above {LARGEST_BODY} bytes.")
            return message

        await self.app(scope, limited, send)
