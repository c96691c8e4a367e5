"""The OpenAI images API over an engine: its routes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lgpl.generator import Sampling
from lgpl.serving.engine import Engine
from lgpl.serving.errors import RESPONSES, APIError, Error, add_handlers, engine_ended
from lgpl.serving.generations import Generations
from lgpl.serving.hosts import CheckHost
from lgpl.serving.limits import LimitBody, Limits
from lgpl.serving.metrics import Metrics
from lgpl.serving.page import HEADERS, page
from lgpl.serving.schema import ImagesRequest, ImagesResponse


def create_app(
    engine: Engine,
    model: str,
    defaults: Sampling = Sampling(),
    limits: Limits = Limits(),
    metrics: Metrics | None = None,
) -> FastAPI:
    """The server over an engine, which it closes when it ends.

    Args:
        engine: draws.
        model: name of the generator in requests and answers.
        defaults: how codes are drawn where a request does not say it.
        limits: of a request.
        metrics: to fill; its own by default.
    """
    metrics = metrics or Metrics()
    metrics.waiting.set_function(lambda: engine.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    # No /docs and no /redoc: their scripts come from elsewhere, which the page's policy forbids.
    app = FastAPI(title="lgpl", lifespan=lifespan, openapi_url=None)
    app.add_middleware(LimitBody)
    if limits.hosts is not None:
        app.add_middleware(CheckHost, limits.hosts)
    add_handlers(app, metrics)
    guard = Depends(_bearer(limits.token))
    app.include_router(_v1(Generations(engine, model, defaults, limits, metrics), guard))
    app.include_router(_described(app, guard))
    app.include_router(_watched(engine, metrics))
    app.include_router(page(engine, model, defaults, limits))
    return app


def _v1(generations: Generations, guard: Any) -> APIRouter:
    """OpenAI's routes, behind the token."""
    model, created = generations.model, int(time.time())
    router = APIRouter(prefix="/v1", dependencies=[guard])

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        dependencies=[Depends(_is_json)],
        responses={200: {"content": {"text/event-stream": {}}}, **RESPONSES},
    )
    async def images(request: Request, body: ImagesRequest) -> Any:
        return await generations.answer(request, body)

    @router.get("/models", responses={401: {"model": Error}})
    async def models() -> dict[str, Any]:
        entry = {"id": model, "object": "model", "created": created, "owned_by": "lgpl"}
        return {"object": "list", "data": [entry]}

    return router


def _described(app: FastAPI, guard: Any) -> APIRouter:
    """The API's own description, behind the token."""
    router = APIRouter(include_in_schema=False, dependencies=[guard])

    @router.get("/openapi.json")
    async def schema() -> Response:
        return JSONResponse(app.openapi(), headers=HEADERS)

    return router


def _watched(engine: Engine, metrics: Metrics) -> APIRouter:
    """What a load balancer and Prometheus ask."""
    router = APIRouter()

    @router.get("/health", responses={503: {"model": Error}})
    async def health() -> dict[str, Any]:
        if not engine.alive:
            raise engine_ended()
        return {"status": "ok", "waiting": engine.waiting}

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _is_json(request: Request) -> None:
    """Refuses a body that a browser would send for a page of another site without asking here."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        said = "The Content-Type of the body must be application/json."
        raise APIError(415, said, None, "unsupported_media_type")


def _bearer(token: str | None) -> Any:
    """Refuses a request that does not bear the token."""

    async def authorized(request: Request) -> None:
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers are read as Latin-1; what was sent for a token are its bytes.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise APIError(401, "The bearer token is missing or wrong.", None, "invalid_api_key")

    return authorized
