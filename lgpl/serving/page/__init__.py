"""A web page on the server itself: a prompt, images that grow, a history."""

from dataclasses import asdict
from importlib.resources import files

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lgpl.generator import Sampling
from lgpl.serving.engine import Engine
from lgpl.serving.limits import Limits

FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/script.js": ("script.js", "text/javascript"),
    "/page/edit.js": ("edit.js", "text/javascript"),
}
# The page loads nothing from other sites and runs no script but its own.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
MOST_PREVIEWS = 7  # of an image that grows; each costs a pass of the detokenizer


def page(engine: Engine, model: str, defaults: Sampling, limits: Limits) -> list[Route]:
    """The routes of the page's files, and of what the page needs to know of the model.

    The page itself needs no token; its requests for images send the one that is typed there.
    """
    description = {
        "name": model,
        **engine.condition.asks()._asdict(),
        "width": engine.width,
        "height": engine.height,
        "images": limits.images,
        "prompt": limits.prompt,
        "masks": engine.masks,
        "rows": engine.layout.rows,
        "columns": engine.layout.columns,
        "partial": len(engine.layout.shown_at(MOST_PREVIEWS)),
        "defaults": asdict(defaults),
        "steps": engine.module.decoder.most_steps(engine.module.model),
    }
    answers: dict[str, Response] = {"/page/model": JSONResponse(description)}
    for path, (name, kind) in FILES.items():
        answers[path] = Response(files(__name__).joinpath(name).read_bytes(), 200, HEADERS, kind)
    return [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]
