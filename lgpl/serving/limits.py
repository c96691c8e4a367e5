"""What the server takes from a client: how large, how slow, and by which Host it is called."""

import asyncio
import ipaddress
import re
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lgpl.errors import UserError
from lgpl.serving.errors import APIError

LARGEST_BODY = 2**16  # bytes
BODY_SECONDS = 30.0  # until the whole body has arrived
# The same of forms with images, which are kept on the disk until they are decoded.
FORMS = ("/v1/images/edits", "/v1/images/variations")
LARGEST_FORM = 50 * 2**20
HELD_FORMS = 2**30  # bytes of all together
FORM_SECONDS = 120.0
HEADER_SECONDS = 20.0  # from the end of the previous request until the headers have arrived
IDLE_SECONDS = 5  # of a connection between two requests
READ_SECONDS = 60.0  # in which a client may read nothing of its answer
CONNECTIONS = 1000  # open at once; further ones are closed
BACKLOG = 512  # connections that the server accepts, or the system queues for it, at a time
ENDED_SECONDS = 5  # that answers may still take after the engine has ended

# RFC 9112, section 3.2, for names without percent-encoding; the port follows the colon.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    images: int = 10  # of one request
    prompt: int = 4000  # characters
    seconds: float = 600.0  # until a request is given up
    token: str | None = None  # bearer token that requests to /v1 need; None needs none
    hosts: frozenset[str] | None = None  # in the Host header, beside loopback; None accepts any
    origins: frozenset[str] = frozenset()  # whose scripts may read the answers in a browser
    any_model: bool = False  # whether requests may name any model
    response_format: str | None = None  # of requests that say none; None goes by the model's name
    links: int = 1000  # images behind links at a time
    link_bytes: int = 2**28  # of all of them
    link_seconds: float = 3600.0  # until a link expires


class LimitBody:
    """Refuses a body while it is read, where it is too large or does not arrive, and forms that
    together would fill the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._held = 0  # bytes of forms that are being read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, is_complete = 0, False
        is_form = scope.get("path") in FORMS
        most = LARGEST_FORM if is_form else LARGEST_BODY
        seconds = FORM_SECONDS if is_form else BODY_SECONDS
        deadline = time.monotonic() + seconds

        async def limited() -> Message:
            nonlocal size, is_complete
            left = None if is_complete else max(0.0, deadline - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                late = f"The body must arrive within {seconds:g} seconds."
                raise APIError(408, late) from None
            is_complete = not message.get("more_body", False)
            new = len(message.get("body", b""))
            size += new
            self._held += new if is_form else 0
            if size > most:
                raise APIError(413, f"The body must have at most {most} bytes.")
            if self._held > HELD_FORMS:
                raise APIError(429, "Too many uploads at a time; try again later.", "uploads_full")
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self._held -= size if is_form else 0


class CheckHost:
    """Refuses every request whose Host is neither this machine nor trusted.

    The name of another site's page can resolve to a loopback address (DNS rebinding); to the
    browser, this server is then that site. Only the Host header shows the difference. Starlette's
    own check takes what precedes the first colon for the name, which fails for IPv6 addresses.
    """

    def __init__(self, app: ASGIApp, trusted: frozenset[str]) -> None:
        self.app, self.trusted = app, trusted  # hosts, as `parse_host` returns them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope) if scope["type"] == "http" else None
        await (error.response() if error else self.app)(scope, receive, send)

    def _check(self, scope: Scope) -> APIError | None:
        headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = parse_host(headers[0]) if len(headers) == 1 else None
        if host is None:
            return APIError(400, "The Host header is missing or malformed.", "bad_host")
        if host in self.trusted or is_loopback(host):
            return None
        return APIError(421, f"Host {host} is not served here.", "unknown_host")


def parse_host(header: str) -> str | None:
    """The normalized host of a Host header without its port; None where it is malformed."""
    match = HOST.fullmatch(header)
    if match is None:
        return None
    name = match[1].lower()
    is_bracketed = name.startswith("[")
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None if is_bracketed else name
    return str(address) if is_bracketed == (address.version == 6) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, given by name or address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def trusted_host(name: str) -> str:
    """A host to trust, as `parse_host` returns it; a UserError where it is not a host."""
    host = parse_host(f"[{name.strip('[]')}]" if ":" in name else name)
    if host is None:
        raise UserError(
            f"--trusted-host must be a name or an address, without scheme or port, got {name!r}"
        )
    return host
