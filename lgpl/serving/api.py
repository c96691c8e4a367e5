"""The OpenAI images API over an engine: requests, answers, errors, limits and metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.serving.engine import Engine, Full, Picture
from lgpl.serving.schema import APIError, Error, Image, Images, ImagesRequest, Usage

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


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "lgpl_requests", "Requests for pictures.", ["status"], registry=registry
        )
        self.pictures = Counter("lgpl_pictures", "Pictures sent.", registry=registry)
        self.seconds = Histogram(
            "lgpl_request_seconds",
            "Time of a request for pictures that was answered.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
            registry=registry,
        )
        self.batch = Histogram(
            "lgpl_batch_pictures",
            "Pictures of a batch.",
            buckets=[2**i for i in range(9)],
            registry=registry,
        )
        self.waiting = Gauge("lgpl_waiting_pictures", "Pictures in the queue.", registry=registry)


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
    created = int(time.time())
    size = f"{engine.width}x{engine.height}"

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def authorized(request: Request) -> None:
        if limits.token is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {limits.token}".encode()):
            raise APIError(401, "The bearer token is missing or wrong.", None, "invalid_api_key")

    def check(body: ImagesRequest) -> None:
        wrong: list[tuple[bool, str, str]] = [
            (body.model not in (None, model), "model", f"is not {model}, which is served here"),
            (body.n > limits.images, "n", f"is above {limits.images}"),
            (bool(body.stream) and body.n > 1, "n", "must be 1 for a stream"),
            (body.size not in (None, "auto", size), "size", f"is not {size}, the model's"),
            (len(body.prompt) > limits.prompt, "prompt", f"is longer than {limits.prompt}"),
            (
                bool(body.partial_images) and not body.stream,
                "partial_images",
                "needs stream: true",
            ),
        ]
        for is_wrong, param, reason in wrong:
            if is_wrong:
                raise APIError(400, f"{param} {reason}.", param, "invalid_value")

    async def pictures(body: ImagesRequest) -> tuple[list[Picture], asyncio.Queue]:
        """Put a request into the engine's queue."""
        try:
            prompt = await asyncio.to_thread(engine.prepare, body.prompt)
        except UserError as error:
            raise APIError(400, str(error), "prompt", "invalid_value") from error
        given = body.model_dump(include={"guidance", "temperature", "top_k", "top_p"})
        chosen = {name: value for name, value in given.items() if value is not None}
        sampling = Sampling(**{**vars(defaults), **chosen})
        first = secrets.randbits(32) if body.seed is None else body.seed
        loop, events = asyncio.get_running_loop(), asyncio.Queue()  # type: ignore[var-annotated]

        def show(i: int) -> Callable[[bytes | Exception, bool], None]:
            return lambda png, whole: loop.call_soon_threadsafe(events.put_nowait, (i, png, whole))  # type: ignore[return-value]

        partial = body.partial_images or 0
        asked = [Picture(prompt, sampling, first + i, partial, show(i)) for i in range(body.n)]
        try:
            engine.submit(asked)
        except Full:
            raise APIError(
                429, "Too many pictures are waiting; try again later.", None, "queue_full"
            ) from None
        return asked, events

    async def drawn(
        asked: list[Picture], events: asyncio.Queue
    ) -> AsyncIterator[tuple[int, bytes, bool]]:
        """Pictures as they come: place in the request, PNG, and whether it is whole."""
        deadline = time.monotonic() + limits.seconds
        left = len(asked)
        try:
            while left:
                wait = max(0.0, deadline - time.monotonic())
                try:
                    i, png, whole = await asyncio.wait_for(events.get(), wait)
                except asyncio.TimeoutError:
                    raise APIError(
                        504, f"Not done after {limits.seconds:g} seconds.", None, "timeout"
                    ) from None
                if isinstance(png, Exception):
                    raise APIError(
                        500, "The picture could not be drawn.", None, "engine_error"
                    ) from png
                left -= whole
                if whole:
                    metrics.pictures.inc()
                yield i, png, whole
        finally:
            for picture in asked:
                picture.cancelled.set()

    def usage(asked: list[Picture]) -> dict[str, int]:
        lengths = [1 if p.prompt.length is None else int(p.prompt.length) for p in asked]
        read, written = sum(lengths), engine.codes * len(asked)
        return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}

    async def whole(request: Request, asked: list[Picture], events: asyncio.Queue) -> Images:
        async def collect() -> list[bytes]:
            found = {i: png async for i, png, _ in drawn(asked, events)}
            return [found[i] for i in range(len(asked))]

        work, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise APIError(499, "The client has left.", None, "client_left")
            data = [
                Image(b64_json=base64.b64encode(png).decode(), seed=picture.seed)
                for png, picture in zip(work.result(), asked, strict=True)
            ]
        finally:
            work.cancel()
            gone.cancel()
        return Images(created=int(time.time()), data=data, size=size, usage=Usage(**usage(asked)))

    async def stream(asked: list[Picture], events: asyncio.Queue) -> AsyncIterator[str]:
        index, begun = 0, time.monotonic()
        try:
            async for _, png, is_whole in drawn(asked, events):
                kind = "completed" if is_whole else "partial_image"
                event: dict[str, Any] = {
                    "type": f"image_generation.{kind}",
                    "b64_json": base64.b64encode(png).decode(),
                    "created_at": int(time.time()),
                    "size": size,
                    "quality": "auto",
                    "background": "opaque",
                    "output_format": "png",
                    "seed": asked[0].seed,
                }
                if is_whole:
                    event["usage"] = usage(asked)
                else:
                    event["partial_image_index"] = index
                    index += 1
                yield _event(event["type"], event)
            metrics.requests.labels("200").inc()
            metrics.seconds.observe(time.monotonic() - begun)
        except APIError as error:
            metrics.requests.labels(str(error.status)).inc()
            yield _event("error", error.body)

    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Error} for status in (400, 401, 413, 429, 500, 504)
    }
    app = FastAPI(title="lgpl", lifespan=lifespan)
    app.add_middleware(LimitBody)

    @app.post(
        "/v1/images/generations",
        response_model=Images,
        dependencies=[Depends(authorized)],
        responses={200: {"content": {"text/event-stream": {}}}, **responses},
    )
    async def generations(request: Request, body: ImagesRequest) -> Any:
        begun = time.monotonic()
        try:
            check(body)
            asked, events = await pictures(body)
            if body.stream:
                return StreamingResponse(stream(asked, events), media_type="text/event-stream")
            answer = await whole(request, asked, events)
        except APIError as error:
            metrics.requests.labels(str(error.status)).inc()
            raise
        metrics.requests.labels("200").inc()
        metrics.seconds.observe(time.monotonic() - begun)
        return answer

    @app.get("/v1/models", dependencies=[Depends(authorized)], responses={401: {"model": Error}})
    async def models() -> dict[str, Any]:
        entry = {"id": model, "object": "model", "created": created, "owned_by": "lgpl"}
        return {"object": "list", "data": [entry]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": engine.waiting}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) if first["loc"] else ""
        known = first["type"] != "json_invalid" and field != ""
        metrics.requests.labels("400").inc()
        said = f"{field}: {first['msg']}." if known else f"The body is wrong: {first['msg']}."
        return APIError(400, said, field if known else None, first["type"]).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        answer = APIError(error.status_code, f"{error.detail}", None, code).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return APIError(500, "The server made a mistake.", None, "server_error").response()

    return app


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
