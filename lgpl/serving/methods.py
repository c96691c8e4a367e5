"""What every route answers alike: HEAD, and the browsers of other origins (CORS)."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lgpl.errors import UserError

PORTS = {"http": 80, "https": 443}  # that browsers leave out of an origin
PREFLIGHT_SECONDS = "600"  # for which a browser remembers the answer to a preflight


class AnswerHead:
    """Answers HEAD as GET without the body, where there is GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


class AllowOrigins:
    """Lets scripts of some origins read the answers (the Fetch standard, CORS protocol).

    For others it does nothing at all: Starlette's own middleware names what it allows to any origin
    that asks. A preflight carries no token, so it is answered before one is required.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app, self.origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        origin = headers.get("origin", "")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.add_vary_header("Origin")  # caches must not hand it to another origin
                if origin in self.origins:
                    answered["Access-Control-Allow-Origin"] = origin
                    answered["Access-Control-Expose-Headers"] = "Retry-After"
            await send(message)

        is_preflight = "access-control-request-method" in headers
        if origin in self.origins and is_preflight and scope["method"] == "OPTIONS":
            allowed = {
                "Access-Control-Allow-Methods": "GET, HEAD, POST",
                # OpenAI's client for browsers sends a dozen of its own.
                "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
                "Access-Control-Max-Age": PREFLIGHT_SECONDS,
            }
            return await Response(None, 204, allowed)(scope, receive, with_headers)
        return await self.app(scope, receive, with_headers if self.origins else send)


def is_of_other_site(headers: Headers, origins: frozenset[str]) -> bool:
    """Whether a browser sends a request for the page of another site than this server and those
    origins. Browsers say so themselves, but to plain HTTP elsewhere than on this machine they name
    the origin alone; other clients name none."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in origins or site in ("same-origin", "none"):
        return False
    own = (origin or "").partition("://")[2] == headers.get("host")
    return site is not None or not (origin is None or own)


def origin_of(text: str) -> str:
    """An origin as browsers send it; a UserError where it is none."""
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    is_bare = not (parts.query or parts.fragment or parts.username) and parts.path in ("", "/")
    if parts.scheme not in PORTS or not host or not is_bare:
        wanted = "an origin such as https://app.example.org"
        raise UserError(f"--cors-origin must be {wanted}, got {text!r}")
    host = f"[{host}]" if ":" in host else host
    shown = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"
