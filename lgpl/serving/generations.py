"""Answers requests for images: checks, queues and waits, as one answer or as a stream."""

import asyncio
import base64
import json
import reprlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Receive, Scope, Send
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator import Sampling
from lgpl.inference.editing import Edit
from lgpl.serving.edits import Files
from lgpl.serving.engine import Engine, ImageJob, Prompt
from lgpl.serving.errors import APIError
from lgpl.serving.forms import Form, Size, accepted_sizes, parse_size, show_size
from lgpl.serving.limits import Limits
from lgpl.serving.links import Links
from lgpl.serving.schema import AnyRequest, EditsRequest, ImageObject, ImagesResponse, Usage

Made = TypeVar("Made")
SAMPLING = {field.name for field in fields(Sampling)}
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Prometheus metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        own: Any = {"registry": CollectorRegistry()}
        self.registry = own["registry"]
        self.requests = Counter("lgpl_requests", "Requests for images.", ["status"], **own)
        self.images = Counter("lgpl_images", "Images sent.", **own)
        self.seconds = Histogram(
            "lgpl_request_seconds", "Seconds of an answered request.", buckets=SECONDS, **own
        )
        sizes = [2**i for i in range(9)]
        said = "Images that began together."
        self.batch = Histogram("lgpl_batch_images", said, buckets=sizes, **own)
        self.waiting = Gauge("lgpl_waiting_images", "Images in the queue.", **own)

    def count(self, status: int, begun: float) -> None:
        """Count a request that began at a `time.monotonic()`; 499 means that the client left."""
        self.requests.labels(str(status)).inc()
        if status == 200:
            self.seconds.observe(time.monotonic() - begun)


class Generation:
    """The jobs of one request, an image for each seed, and what the engine shows of them."""

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seeds: range,
        previews: int,
        form: Form,
        given: Sequence[Tensor | None],  # for each seed, see `ImageJob`
        edit: Edit | None,
    ) -> None:
        self._loop, self.form = asyncio.get_running_loop(), form
        self._shown: asyncio.Queue[tuple[int, bytes | BaseException, bool]] = asyncio.Queue()
        self.jobs = [
            ImageJob(prompt, sampling, seed, previews, partial(self._show, i), form, known, edit)
            for i, (seed, known) in enumerate(zip(seeds, given, strict=True))
        ]

    def _show(self, i: int, shown: bytes | BaseException, is_complete: bool) -> None:
        """Runs in a thread of the engine."""
        self._loop.call_soon_threadsafe(self._shown.put_nowait, (i, shown, is_complete))

    async def images(self, seconds: float) -> AsyncIterator[tuple[int, bytes, bool]]:
        """Yield an image's index in the request, its file, and whether it is complete; raise an
        APIError where the engine fails or ends, the time is over, or the client has left, as
        `watch` says."""
        deadline, left = time.monotonic() + seconds, len(self.jobs)
        while left:
            wait = max(0.0, deadline - time.monotonic())
            try:
                i, shown, is_complete = await asyncio.wait_for(self._shown.get(), wait)
            except asyncio.TimeoutError:
                raise _late(seconds) from None
            if isinstance(shown, APIError):
                raise shown
            if isinstance(shown, BaseException):
                raise APIError(500, "The image could not be drawn.", "engine_error") from shown
            left -= is_complete
            yield i, shown, is_complete

    async def watch(self, request: Request) -> None:
        """End `images` when the client leaves."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._shown.put_nowait((0, APIError(499, "The client has left.", "client_left"), True))

    def cancel(self) -> None:
        """Stop drawing what is not complete."""
        for job in self.jobs:
            job.cancelled.set()

    def usage(self, codes: int) -> Usage:
        """Positions of the prompts, and of images of so many codes each."""
        read, written = len(self.jobs) * self.jobs[0].prompt.positions, len(self.jobs) * codes
        return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written)


class GenerationStream(StreamingResponse):
    """A stream whose end cancels its generation, even if no event was ever read."""

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.cancel()


class Generations:
    """Answers requests for images; see `create_app` for the arguments."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        defaults: Sampling,
        limits: Limits,
        metrics: Metrics,
        links: Links,
    ) -> None:
        self.engine, self.model, self.defaults = engine, model, defaults
        self.limits, self.metrics, self.links = limits, metrics, links
        self.size = engine.width, engine.height

    async def answer(self, request: Request, body: AnyRequest, files: Files | None = None) -> Any:
        """An `ImagesResponse` or a stream; raises an APIError where there is nothing to send. The
        files, of an edit or a variation, are read before it returns."""
        begun = time.monotonic()
        try:
            self._check(body)
            generation = await self._submit(body, files)
            if body.stream:
                return GenerationStream(generation, self._stream(body, generation, begun))
            images = await self._respond(request, body, generation)
        except APIError as error:
            self.metrics.count(error.status_code, begun)
            raise
        self.metrics.count(200, begun)
        return images

    async def _submit(self, body: AnyRequest, files: Files | None) -> Generation:
        if files is not None and self.engine.masks == "none":
            reason = "image: this server draws whole images only; it needs a model of rows of codes"
            raise APIError(400, f"{reason} and --engine lgpl.", "invalid_value", "image")
        chosen = body.model_dump(include=SAMPLING, exclude_none=True)
        sampling, previews = replace(self.defaults, **chosen), body.partial_images or 0
        first, images = secrets.randbits(32) if body.seed is None else body.seed, body.n or 1
        quality = 100 if body.output_compression is None else body.output_compression
        form = Form(body.output_format or "png", quality, parse_size(body.size, self.size))
        seeds = range(first, first + images)
        self._check_steps(sampling)
        self.engine.queue.check_room(images)  # before the work of encoding
        prompt = await self._in_thread(None, self.engine.prepare, body.prompt)
        given, edit = await self._encoded(body, files, seeds, form.size or self.size)
        if given[0] is not None:
            left = int((given[0] < 0).sum())  # as many of each
            sampling = replace(self.defaults.within(left), **chosen)
            self._check_steps(sampling, left)
        generation = Generation(prompt, sampling, seeds, previews, form, given, edit)
        self.engine.queue.put(generation.jobs)
        return generation

    def _check_steps(self, sampling: Sampling, left: int | None = None) -> None:
        try:
            self.engine.check(sampling, left)
        except UserError as error:
            raise APIError(400, str(error), "invalid_value", "steps") from error

    async def _encoded(
        self, body: AnyRequest, files: Files | None, seeds: range, size: Size
    ) -> tuple[Sequence[Tensor | None], Edit | None]:
        """The codes that are given for each seed, and what of an image is kept."""
        if files is None:
            return [None] * len(seeds), None
        if not isinstance(body, EditsRequest):
            return await self._in_thread(self.engine.reader, self.engine.vary, files, seeds), None
        edit = await self._in_thread(self.engine.reader, self.engine.edit, files, size)
        return [edit.given] * len(seeds), edit

    async def _in_thread(
        self, threads: Executor | None, make: Callable[..., Made], *args: Any
    ) -> Made:
        """What is made beside the event loop, by default in any thread, within the time of a
        request."""
        seconds, loop = self.limits.seconds, asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(threads, make, *args), seconds)
        except asyncio.TimeoutError:
            raise _late(seconds) from None

    def _check(self, body: AnyRequest) -> None:
        images, length, n = self.limits.images, self.limits.prompt, body.n or 1
        is_link = body.response_format == "url"
        rules: list[tuple[str, Any, str]] = [
            ("model", self.knows(body.model), self.model),
            ("n", n <= images, f"<= {images}"),
            ("n", n == 1 or not body.stream, "1 for a stream"),
            ("size", parse_size(body.size, self.size), accepted_sizes(self.size)),
            ("response_format", not (is_link and body.stream), "b64_json for a stream"),
            ("prompt", len(body.prompt or "") <= length, f"at most {length} characters"),
            ("partial_images", body.stream or not body.partial_images, "0 without stream: true"),
        ]
        for param, holds, accepted in rules:
            if not holds:
                reason = f"{param} must be {accepted}, got {reprlib.repr(getattr(body, param))}."
                raise APIError(400, reason, "invalid_value", param)

    def knows(self, model: str | None) -> bool:
        """Whether requests may name the model; None is the only one there is."""
        return self.limits.any_model or model in (None, self.model)

    async def _respond(
        self, request: Request, body: AnyRequest, generation: Generation
    ) -> ImagesResponse:
        """Wait for all images, unless the client leaves before."""
        watch = asyncio.ensure_future(generation.watch(request))
        try:
            found = {i: file async for i, file, _ in generation.images(self.limits.seconds)}
        finally:
            watch.cancel()
            generation.cancel()
        files = [found[i] for i in range(len(generation.jobs))]
        if self._format(body) == "url":
            names = self.links.put(files, generation.form.format)
            shown = [{"url": str(request.url_for("image", name=name))} for name in names]
        else:
            shown = [{"b64_json": _base64(file)} for file in files]
        jobs = zip(generation.jobs, shown, strict=True)
        data = [ImageObject(seed=job.seed, **own) for job, own in jobs]
        self.metrics.images.inc(len(data))
        usage = generation.usage(self.engine.layout.codes)
        said = self._said(body, generation.form)
        return ImagesResponse(created=int(time.time()), data=data, usage=usage, **said)

    def _format(self, body: AnyRequest) -> str:
        """By default as OpenAI's models of that name: DALL-E answers with links, the others in
        Base64. LangChain's wrapper of DALL-E reads nothing but links, and cannot ask for them."""
        named = "url" if (body.model or "").startswith("dall-e") else "b64_json"
        return body.response_format or self.limits.response_format or named

    def _said(self, body: AnyRequest, form: Form) -> dict[str, Any]:
        """What every answer says of its files."""
        sizes = {"size": show_size(form.size or self.size), "drawn_size": show_size(self.size)}
        fixed = {"quality": body.quality or "auto", "background": "opaque"}
        return {**sizes, **fixed, "output_format": form.format}

    async def _stream(
        self, body: AnyRequest, generation: Generation, begun: float
    ) -> AsyncIterator[str]:
        """Server-sent events of one image."""
        index, status = 0, 499  # unless it comes to an end
        usage = generation.usage(self.engine.layout.codes).model_dump()
        fixed = {**self._said(body, generation.form), "seed": generation.jobs[0].seed}
        try:
            async for _, file, is_complete in generation.images(self.limits.seconds):
                self.metrics.images.inc(is_complete)
                kind = f"{body.event}.{'completed' if is_complete else 'partial_image'}"
                event = {"type": kind, "b64_json": _base64(file), "created_at": int(time.time())}
                event |= fixed
                event |= {"usage": usage} if is_complete else {"partial_image_index": index}
                yield _event(kind, json.dumps(event))
                index += 1
            status = 200
        except APIError as error:
            status = error.status_code
            yield _event("error", error.json)
        finally:
            self.metrics.count(status, begun)


def _late(seconds: float) -> APIError:
    return APIError(504, f"The request was not answered within {seconds:g} seconds.", "timeout")


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _event(kind: str, data: str) -> str:
    return f"event: {kind}\ndata: {data}\n\n"
