"""A page for people on the server itself: a prompt, pictures that grow, what was drawn before."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response

from lgpl.generator import Sampling
from lgpl.serving.engine import Engine
from lgpl.serving.limits import Limits

FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/script.js": ("script.js", "text/javascript"),
}
# Nothing comes from elsewhere, and no script but the page's own runs.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
MOST_PARTIAL = 7  # times that a growing picture is shown; each costs a pass of the detokenizer


def page(engine: Engine, model: str, defaults: Sampling, limits: Limits) -> APIRouter:
    """The page's files, and what it has to know of the model.

    The page itself asks for no token; its requests for pictures bear the one that is typed there.
    """
    router = APIRouter(include_in_schema=False)
    told = {
        "name": model,
        **engine.condition.asks()._asdict(),
        "width": engine.width,
        "height": engine.height,
        "images": limits.images,
        "prompt": limits.prompt,
        "partial": len(engine.module.model.layout.shown_at(MOST_PARTIAL)),
        "defaults": asdict(defaults),
    }

    @router.get("/page/model")
    async def about() -> dict[str, Any]:
        return told

    for path, (name, kind) in FILES.items():
        content = files(__name__).joinpath(name).read_bytes()
        router.add_api_route(path, _file(content, kind), methods=["GET"])
    return router


def _file(content: bytes, kind: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return answer
