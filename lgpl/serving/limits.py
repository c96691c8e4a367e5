"""What a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 2**16  # bytes


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
    """Refuses a body before it is read whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise HTTPException(413, f"The body is above {LARGEST_BODY} bytes.")
            return message

        await self.app(scope, limited, send)
