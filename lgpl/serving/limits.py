"""What a request may ask for, and how long a client may take."""

from dataclasses import dataclass

LARGEST_BODY = 2**16  # bytes
BODY_SECONDS = 30.0  # until the whole body has arrived
HEADER_SECONDS = 20.0  # from the end of the previous request until the headers have arrived
IDLE_SECONDS = 5  # of a connection between two requests
READ_SECONDS = 60.0  # in which a client may read nothing of its answer
CONNECTIONS = 1000  # open at once; further ones are closed
BACKLOG = 512  # connections that the server accepts, or the system queues for it, at a time
ENDED_SECONDS = 5  # that answers may still take after the engine has ended


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    images: int = 10  # of one request
    prompt: int = 4000  # characters
    seconds: float = 600.0  # until a request is given up
    token: str | None = None  # bearer token that requests to /v1 need; None needs none
    hosts: frozenset[str] | None = None  # in the Host header, beside loopback; None accepts any
