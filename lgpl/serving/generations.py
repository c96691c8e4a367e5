"""Requests for pictures: checked, put into the engine's queue, answered at once or as a stream."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.serving.engine import Ended, Engine, Full, Picture, Prompt
from lgpl.serving.errors import APIError, engine_ended
from lgpl.serving.limits import Limits
from lgpl.serving.metrics import Metrics
from lgpl.serving.schema import ImageObject, ImagesRequest, ImagesResponse, Usage

SAMPLING = {field.name for field in fields(Sampling)}


class Drawing:
    """The pictures of one request, as the engine draws them.

    Args:
        prompt: of all.
        sampling: of all.
        seeds: one for each picture.
        partial: how often each is shown before it is whole.
    """

    def __init__(self, prompt: Prompt, sampling: Sampling, seeds: range, partial: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, bytes | BaseException, bool]] = asyncio.Queue()
        self.pictures = [
            Picture(prompt, sampling, seed, partial, self._show(i)) for i, seed in enumerate(seeds)
        ]

    def _show(self, i: int) -> Callable[[bytes | BaseException, bool], None]:
        def show(png: bytes | BaseException, whole: bool) -> None:  # in the engine's thread
            self._loop.call_soon_threadsafe(self._events.put_nowait, (i, png, whole))

        return show

    async def events(self, seconds: float) -> AsyncIterator[tuple[int, bytes, bool]]:
        """Place in the request, PNG, and whether it is whole.

        Raises:
            APIError: the engine failed or has ended, or it takes more than `seconds`.
        """
        deadline, left = time.monotonic() + seconds, len(self.pictures)
        while left:
            wait = max(0.0, deadline - time.monotonic())
            try:
                i, png, whole = await asyncio.wait_for(self._events.get(), wait)
            except asyncio.TimeoutError:
                raise _late(seconds) from None
            if isinstance(png, Ended):
                raise engine_ended()
            if isinstance(png, BaseException):
                raise APIError(
                    500, "The picture could not be drawn.", None, "engine_error"
                ) from png
            left -= whole
            yield i, png, whole

    def cancel(self) -> None:
        """Nobody waits any more; of what is whole nothing changes."""
        for picture in self.pictures:
            picture.cancelled.set()

    def usage(self, codes: int) -> Usage:
        """Positions of the prompts, and of pictures of so many codes."""
        read = sum(picture.prompt.positions for picture in self.pictures)
        written = codes * len(self.pictures)
        return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written)


class DrawingResponse(StreamingResponse):
    """A stream of one drawing, which ends with it, even before it has begun."""

    def __init__(self, drawing: Drawing, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.drawing = drawing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.drawing.cancel()


class Generations:
    """Answers requests for pictures.

    Args:
        engine: draws.
        model: the generator's name in requests.
        defaults: how codes are drawn where a request does not say it.
        limits: of a request.
        metrics: to fill.
    """

    def __init__(
        self, engine: Engine, model: str, defaults: Sampling, limits: Limits, metrics: Metrics
    ) -> None:
        self.engine, self.model = engine, model
        self.defaults, self.limits, self.metrics = defaults, limits, metrics
        self.size = f"{engine.width}x{engine.height}"

    async def answer(
        self, request: Request, body: ImagesRequest
    ) -> ImagesResponse | StreamingResponse:
        """Raises an APIError where there is no picture to answer with."""
        begun = time.monotonic()
        try:
            self._check(body)
            drawing = await self._submit(body)
            if body.stream:
                return DrawingResponse(drawing, self._stream(drawing))
            images = await self._whole(request, drawing)
        except APIError as error:
            self._count(error.status, begun)
            raise
        self._count(200, begun)
        return images

    def _check(self, body: ImagesRequest) -> None:
        model, limits, size = self.model, self.limits, self.size
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

    async def _submit(self, body: ImagesRequest) -> Drawing:
        """Put a request into the engine's queue."""
        try:
            if not self.engine.has_room(body.n):  # before the work of reading the prompt
                raise Full
            drawing = await self._prepare(body)
            self.engine.submit(drawing.pictures)
        except Full:
            raise _full() from None
        except Ended:
            raise engine_ended() from None
        return drawing

    async def _prepare(self, body: ImagesRequest) -> Drawing:
        """What a request asks for."""
        try:
            reading = asyncio.to_thread(self.engine.prepare, body.prompt)
            prompt = await asyncio.wait_for(reading, self.limits.seconds)
        except UserError as error:
            raise APIError(400, f"prompt: {error}", "prompt", "invalid_value") from error
        except asyncio.TimeoutError:
            raise _late(self.limits.seconds) from None
        given = body.model_dump(include=SAMPLING)
        chosen = {name: value for name, value in given.items() if value is not None}
        sampling = Sampling(**{**vars(self.defaults), **chosen})
        first = secrets.randbits(32) if body.seed is None else body.seed
        seeds = range(first, first + body.n)
        return Drawing(prompt, sampling, seeds, body.partial_images or 0)

    async def _whole(self, request: Request, drawing: Drawing) -> ImagesResponse:
        """All pictures, unless the client leaves before."""
        work = asyncio.ensure_future(self._collect(drawing))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise APIError(499, "The client has left.", None, "client_left")
            data = [
                ImageObject(b64_json=_base64(png), seed=picture.seed)
                for png, picture in zip(work.result(), drawing.pictures, strict=True)
            ]
        finally:
            work.cancel()
            gone.cancel()
            drawing.cancel()
        usage = drawing.usage(self.engine.codes)
        return ImagesResponse(created=int(time.time()), data=data, size=self.size, usage=usage)

    async def _collect(self, drawing: Drawing) -> list[bytes]:
        found = {i: png async for i, png, _ in self._drawn(drawing)}
        return [found[i] for i in range(len(drawing.pictures))]

    async def _drawn(self, drawing: Drawing) -> AsyncIterator[tuple[int, bytes, bool]]:
        async for i, png, whole in drawing.events(self.limits.seconds):
            if whole:
                self.metrics.pictures.inc()
            yield i, png, whole

    async def _stream(self, drawing: Drawing) -> AsyncIterator[str]:
        """Server-sent events of one picture."""
        begun, index = time.monotonic(), 0
        status = 499  # unless it comes to an end
        try:
            async for _, png, whole in self._drawn(drawing):
                if whole:
                    more: dict[str, Any] = {"usage": drawing.usage(self.engine.codes).model_dump()}
                else:
                    more = {"partial_image_index": index}
                    index += 1
                kind = f"image_generation.{'completed' if whole else 'partial_image'}"
                event = self._event(png, drawing.pictures[0].seed)
                yield _sent(kind, {"type": kind, **event, **more})
            status = 200
        except APIError as error:
            status = error.status
            yield _sent("error", error.body)
        finally:
            self._count(status, begun)

    def _event(self, png: bytes, seed: int) -> dict[str, Any]:
        return {
            "b64_json": _base64(png),
            "created_at": int(time.time()),
            "size": self.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": "png",
            "seed": seed,
        }

    def _count(self, status: int, begun: float) -> None:
        self.metrics.requests.labels(str(status)).inc()
        if status == 200:
            self.metrics.seconds.observe(time.monotonic() - begun)


def _late(seconds: float) -> APIError:
    return APIError(504, f"Not done after {seconds:g} seconds.", None, "timeout")


def _full() -> APIError:
    return APIError(429, "Too many pictures are waiting; try again later.", None, "queue_full")


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _sent(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
