"""What a request may ask for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 2**16  # bytes
BODY_SECONDS = 30.0  # between its parts


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        images: pictures of one request.
        prompt: characters of a prompt.
        seconds: until a request is given up.
        token: that a request to /v1 must bear; None asks for none.
    """

    images: int = 10
    prompt: int = 4000
    seconds: float = 600.0
    token: str | None = None


class LimitBody:
    """Refuses a body before it is read whole: one too large, or one that does not come."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, is_whole = 0, False

        async def limited() -> Message:
            nonlocal read, is_whole
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else BODY_SECONDS)
            except asyncio.TimeoutError:
                raise HTTPException(408, f"No body came for {BODY_SECONDS:g} seconds.") from None
            is_whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise HTTPException(413, f"The body is above {LARGEST_BODY} bytes.")
            return message

        await self.app(scope, limited, send)
