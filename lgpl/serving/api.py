"""The routes of the OpenAI images API over an engine."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from lgpl.generator import Sampling
from lgpl.serving.edits import MOST_FIELDS, MOST_FILES, form_schema, read
from lgpl.serving.engine import Engine
from lgpl.serving.errors import HANDLERS, APIError, Ended, Error
from lgpl.serving.generations import Generations, Metrics
from lgpl.serving.limits import LARGEST_BODY, CheckHost, LimitBody, Limits
from lgpl.serving.links import Links
from lgpl.serving.methods import AllowOrigins, AnswerHead, is_of_other_site
from lgpl.serving.page import HEADERS, page
from lgpl.serving.schema import (
    AnyRequest,
    EditsRequest,
    ImagesRequest,
    ImagesResponse,
    VariationsRequest,
)


def create_app(
    engine: Engine, model: str, defaults: Sampling = Sampling(), limits: Limits = Limits()
) -> FastAPI:
    """Build the server of an engine, which it closes when it ends; `model` is the generator's name
    in requests and answers, `defaults` the sampling of requests that do not set it."""
    metrics, created = Metrics(), int(time.time())
    metrics.waiting.set_function(lambda: len(engine.queue))
    engine.on_batch = metrics.batch.observe
    links = Links(limits.links, limits.link_bytes, limits.link_seconds)
    generations = Generations(engine, model, defaults, limits, metrics, links)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    # Without openapi_url there are no /docs and /redoc: they load scripts from other sites, which
    # the page's policy forbids.
    app = FastAPI(title="lgpl", lifespan=lifespan, openapi_url=None, exception_handlers=HANDLERS)
    app.state.metrics = metrics
    app.add_middleware(LimitBody)
    if limits.hosts is not None:
        app.add_middleware(CheckHost, limits.hosts)
    app.add_middleware(AnswerHead)
    app.add_middleware(AllowOrigins, limits.origins)  # the outermost, so that it covers refusals
    app.router.routes.extend(page(engine, model, defaults, limits))
    app.router.routes.append(Route("/images/{name}", links.serve, name="image"))
    guards = [] if limits.token is None else [Depends(_require(limits.token))]
    statuses = (400, 401, 403, 408, 413, 415, 421, 429, 500, 503, 504)
    errors: dict[int | str, Any] = {status: {"model": Error} for status in statuses}

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "lgpl"}

    @app.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        response_model_exclude_none=True,
        dependencies=[*guards, Depends(_require_json)],
        responses={200: {"content": {"text/event-stream": {}}}, **errors},
    )
    async def images(request: Request, body: ImagesRequest) -> Any:
        return await generations.answer(request, body)

    # Not of arguments, which FastAPI reads before it asks the guards.
    async def answer_form(request: Request, kind: type[AnyRequest]) -> Any:
        sizes = {"max_files": MOST_FILES, "max_fields": MOST_FIELDS, "max_part_size": LARGEST_BODY}
        try:
            form = await request.form(**sizes)
        except (ValueError, ClientDisconnect) as error:  # the parser's limits are HTTPExceptions
            raise APIError(400, "The body is no valid form.") from error
        try:
            return await generations.answer(request, *read(form, kind))
        finally:
            await form.close()

    def form_of(kind: type[AnyRequest]) -> dict[str, Any]:
        return {
            "response_model": ImagesResponse,
            "response_model_exclude_none": True,
            "dependencies": [*guards, Depends(_require_form(limits.origins))],
            "responses": {200: {"content": {"text/event-stream": {}}}, **errors},
            "openapi_extra": {"requestBody": form_schema(kind)},
        }

    @app.post("/v1/images/edits", **form_of(EditsRequest))
    async def edits(request: Request) -> Any:
        return await answer_form(request, EditsRequest)

    @app.post("/v1/images/variations", **form_of(VariationsRequest))
    async def variations(request: Request) -> Any:
        return await answer_form(request, VariationsRequest)

    @app.get("/v1/models", dependencies=guards, responses={401: {"model": Error}})
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(model)]}

    missing: dict[int | str, Any] = {401: {"model": Error}, 404: {"model": Error}}

    # Of a path, since the names of runs contain slashes.
    @app.get("/v1/models/{name:path}", dependencies=guards, responses=missing)
    async def one_model(name: str) -> dict[str, Any]:
        if not generations.knows(name):
            reason = f"The model {name!r} does not exist; this server has {model!r}."
            raise APIError(404, reason, "model_not_found", "model")
        return entry(name)

    @app.get("/openapi.json", dependencies=guards, include_in_schema=False)
    async def schema() -> Response:
        return JSONResponse(app.openapi(), headers=HEADERS)

    @app.get("/health", responses={503: {"model": Error}})
    async def health() -> dict[str, Any]:
        if not engine.alive:
            raise Ended()
        return {"status": "ok", "waiting": len(engine.queue)}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _require_json(request: Request) -> None:
    """Refuse the content types that a browser sends for another site's page without a preflight."""
    _require_type(request, "application/json")


def _require_form(origins: frozenset[str]) -> Any:
    """A dependency that refuses other content types than a form's, and forms of another site's
    page, which browsers send without a preflight."""

    async def check(request: Request) -> None:
        _require_type(request, "multipart/form-data")
        if is_of_other_site(request.headers, origins):
            reason = "Pages of other sites may not send forms; `lgpl serve --cors-origin` lets one."
            raise APIError(403, reason)

    return check


def _require_type(request: Request, wanted: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise APIError(415, f"Content-Type must be {wanted}, got {kind!r}.")


def _require(token: str) -> Any:
    """A dependency that refuses requests without the bearer token."""

    async def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Starlette decodes headers as Latin-1; a client sends the bytes of UTF-8.
        is_equal = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_equal:
            raise APIError(401, "The bearer token is missing or wrong.", "invalid_api_key")

    return check
