"""Which Host a request may name.

A page of another site can have its own name resolve to a loopback address (DNS rebinding); to the
browser, this server is then that site. What gives it away is the Host header.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from lgpl.errors import UserError
from lgpl.serving.errors import APIError

# RFC 9112, section 3.2, of names without percent-encoding: what follows the colon is the port.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


def host_of(header: str) -> str | None:
    """The host that a Host header names, in its one form and without the port; None where it is
    malformed."""
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
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def trusted_host(name: str) -> str:
    """A host that is to be trusted, as `host_of` gives it.

    Raises:
        UserError: it is no host.
    """
    host = host_of(f"[{name.strip('[]')}]" if ":" in name else name)
    if host is None:
        raise UserError(
            f"--trusted-host: {name} is no host; give a name or an address, without scheme or port."
        )
    return host


class CheckHost:
    """Refuses a request, whatever it asks for, whose Host is neither this machine nor trusted.

    Starlette's own takes what stands before the first colon for the name, which no IPv6 address
    survives.

    Args:
        trusted: hosts, as `host_of` gives them.
    """

    def __init__(self, app: ASGIApp, trusted: frozenset[str]) -> None:
        self.app, self.trusted = app, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal.response() if refusal else self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = host_of(headers[0]) if len(headers) == 1 else None
        if host is None:
            return APIError(400, "The Host header is missing or malformed.", None, "bad_host")
        if host in self.trusted or is_loopback(host):
            return None
        return APIError(421, f"Host {host} is not served here.", None, "unknown_host")
