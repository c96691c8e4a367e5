"""Images that wait behind links: bounded in number, bytes and time."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request, Response

from lgpl.serving.errors import APIError
from lgpl.serving.forms import TYPES

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",  # if a browser shows it as a page of its own
    "Referrer-Policy": "no-referrer",  # the link is the key to the image
}


class Linked(NamedTuple):
    image: bytes
    kind: str  # the content type
    ends: float  # at this `time.monotonic()`


class Links:
    """Keeps images for so many seconds, or until later ones need their room.

    A link holds 256 random bits and is the only key to its image: GET and HEAD need no token, as
    the programs that show images send none.
    """

    def __init__(self, number: int, size: int, seconds: float) -> None:
        self.number, self.size, self.seconds = number, size, seconds
        self._kept: OrderedDict[str, Linked] = OrderedDict()  # the oldest first
        self._bytes, self._lock = 0, threading.Lock()

    def put(self, images: Sequence[bytes], file_format: str) -> list[str]:
        """Keep the images of one answer; return the name of each. Raise an APIError where they have
        no room even if all others go."""
        size, names = sum(map(len, images)), []
        if size > self.size or len(images) > self.number:
            room = f"{self.number} images and {self.size} bytes"
            reason = f"response_format must be b64_json for more than {room}, got 'url'."
            raise APIError(400, reason, "invalid_value", "response_format")
        ends = time.monotonic() + self.seconds
        with self._lock:
            for image in images:
                name = f"{secrets.token_urlsafe(32)}.{file_format}"
                self._kept[name] = Linked(image, TYPES[file_format], ends)
                self._bytes += len(image)
                names.append(name)
            self._drop()
        return names

    def get(self, name: str) -> Linked | None:
        """None where it was never there or has expired."""
        with self._lock:
            self._drop()
            return self._kept.get(name)

    def _drop(self) -> None:
        """Drop what has expired, then the oldest until the others fit."""
        now = time.monotonic()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            fits = len(self._kept) <= self.number and self._bytes <= self.size
            if fits and oldest.ends > now:
                return
            self._bytes -= len(self._kept.popitem(last=False)[1].image)

    async def serve(self, request: Request) -> Response:
        """The route of an image."""
        linked = self.get(request.path_params["name"])
        if linked is None:
            raise APIError(404, "The link of this image is unknown or has expired.", "no_such_link")
        left = max(0, int(linked.ends - time.monotonic()))
        headers = {**HEADERS, "Cache-Control": f"private, max-age={left}"}
        return Response(linked.image, 200, headers, linked.kind)
