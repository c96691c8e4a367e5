"""What all engines share: the queue of images to draw, the threads, and the encoding of files."""

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lgpl.data.codecs import on_white, open_layers
from lgpl.data.members import BadSample
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.conditions import Condition, Inputs
from lgpl.inference import editing
from lgpl.inference.editing import Edit
from lgpl.serving.edits import Files
from lgpl.serving.errors import APIError, Ended, Full
from lgpl.serving.forms import Form, Size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What an image is conditioned on."""

    content: Any  # the condition's inputs, in the form that the engine needs
    positions: int  # of the generator's sequence that the prompt takes


@dataclass(eq=False)
class ImageJob:
    """One image to draw."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    partial: int  # previews to show before the image is complete
    # Called in a thread of the engine with a file and whether the image is complete, or with an
    # error and True.
    show: Callable[[bytes | BaseException, bool], None]
    form: Form = Form()  # of the files
    given: Tensor | None = None  # codes [codes] in the flat order that are known, -1 at others
    edit: Edit | None = None  # over whose original the image is shown
    cancelled: threading.Event = field(default_factory=threading.Event)  # set by the client's side
    previews: list[int] = field(default_factory=list)  # drawn places at which each is due


class JobQueue:
    """A bounded first-in, first-out queue between the server's thread and the engine's."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.closed = capacity, False
        self._jobs: deque[ImageJob] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self, jobs: int) -> None:
        """Raise `Full` or `Ended` where so many more jobs cannot be put."""
        with self._changed:
            if self.closed:
                raise Ended()
            self._drop_cancelled()
            if len(self._jobs) + jobs > self.capacity:
                raise Full()

    def put(self, jobs: Sequence[ImageJob]) -> None:
        """Append all jobs or none; raise `Full` or `Ended` where that is not possible."""
        with self._changed:
            self.check_room(len(jobs))
            self._jobs.extend(jobs)
            self._changed.notify()

    def take(self, most: int, wait: bool = True, gather: float = 0.0) -> list[ImageJob]:
        """Remove the oldest jobs; none only where the queue is closed and empty, or without `wait`.
        Where there is a job, wait `gather` seconds for further ones. Raise the error that the queue
        was closed with."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if gather and self._jobs:
                    self._changed.wait_for(
                        lambda: self.closed or len(self._jobs) >= most, timeout=gather
                    )
                    self._drop_cancelled()
                if self._error is not None:
                    raise self._error
                if self._jobs or self.closed or not wait:
                    return [self._jobs.popleft() for _ in range(min(most, len(self)))]
                self._changed.wait()

    def drain(self) -> list[ImageJob]:
        """Remove all jobs, also where the queue was closed with an error."""
        with self._changed:
            jobs, self._jobs = self._jobs, deque()
            return list(jobs)

    def close(self, error: BaseException | None = None) -> None:
        """Accept no more jobs; `take` raises the error, or without one returns what waits."""
        with self._changed:
            self.closed, self._error = True, self._error or error
            self._changed.notify()

    def _drop_cancelled(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.cancelled.is_set())


class Engine(ABC):
    """Draws the jobs of a queue in a thread of its own; one more thread encodes the images.

    No job, client or metric can end the thread. If it ends before `close` all the same, `failure`
    holds the cause, and every job is answered with `Ended`. A UserError says at once where what
    prompts need, such as a text encoder, cannot be used.
    """

    def __init__(
        self, module: GeneratorModule, condition: Condition, batch_size: int, capacity: int
    ) -> None:
        self.module = module  # with its tokenizer, ready to decode
        self.condition = condition  # the generator's, with its weights
        self.batch_size, self.layout = batch_size, module.model.layout
        self.height, self.width = module.image_size
        self.on_batch: Callable[[int], None] = lambda images: None  # called for every batch
        condition.load()
        self._encoding = threading.Lock()
        # Of images, one after the other, since large ones take memory; prompts need not wait.
        self.reader = ThreadPoolExecutor(1, "lgpl-reader")
        self.queue = JobQueue(capacity)  # where clients put their jobs
        self._renderer = ThreadPoolExecutor(1, "lgpl-renderer")  # one thread keeps the order
        self.failure: BaseException | None = None
        self._active: set[ImageJob] = set()  # taken from the queue, neither drawn nor refused
        self._thread = threading.Thread(target=self._work, name="lgpl-engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it draws; False after it was closed or has failed for good."""
        return self._thread.is_alive() and self.failure is None

    def prepare(self, prompt: str | None) -> Prompt:
        """Parse a prompt; None is the null condition. Raise an APIError where it is refused."""
        with self._encoding, _naming("prompt"), torch.no_grad():
            if prompt is None:
                zeros = self.condition.zeros(1)
                device = self.module.device
                inputs = self.condition.null({k: x.to(device) for k, x in zeros.items()})
            else:
                inputs = self.condition.parse(prompt)
        return Prompt(self._content(inputs), self.condition.positions(inputs))

    @property
    def masks(self) -> Literal["any", "tail", "none"]:
        """What can be drawn anew of an image: any part, all from some code to the last, nothing."""
        if self.layout.rows == 1:
            return "none"
        return "tail" if self.module.decoder.in_order else "any"

    def edit(self, files: Files, size: Size) -> Edit:
        """The edit of an image's middle, shown at a size. What is transparent in the mask is drawn,
        by default what is in the image. Raise an APIError that names the field."""
        with _naming("image"):
            image = open_layers(files.image.read())
        with _naming("mask"):
            if files.mask is None:
                mask = editing.hole(image)
                wrong = "it must be given for an image without a transparent part."
            else:
                layers = open_layers(files.mask.read())
                editing.check_size(layers, image.size)
                mask = editing.hole(layers)
                wrong = "the mask has no hole: what is to be drawn must be transparent in it."
            if mask is None:
                raise UserError(wrong)
            box = editing.middle(image.size, self.module.image_size)
            seen = on_white(image).crop(box)
            return editing.edit(self.module, seen, mask.crop(box)).scaled(size)

    def vary(self, files: Files, seeds: Sequence[int]) -> list[Tensor]:
        """Codes that are given for each variation of an image's middle: a random half by its seed,
        or where codes are drawn in order, the first half. Raises as `edit` does."""
        places, given = self.layout.places, []
        with _naming("image"):
            codes = editing.codes_of(self.module, on_white(open_layers(files.image.read())))
            for seed in seeds:
                drawn = torch.zeros(places, dtype=torch.bool)
                if self.module.decoder.in_order:
                    drawn[places // 2 :] = True
                else:  # by another generator than the one that draws
                    drawn[random.Random(seed).sample(range(places), places // 2)] = True
                given.append(editing.keep(self.module, codes, drawn.view(self.layout.rows, -1)))
        return given

    def check(self, sampling: Sampling, left: int | None = None) -> None:
        """Raise a UserError where its decoder cannot draw so; `left` of an image's codes are not
        given, by default all."""
        self.module.check_sampling(sampling, left)

    def close(self) -> None:
        """Finish all submitted jobs and end."""
        self.queue.close()
        self._thread.join()
        self._renderer.shutdown()
        self.reader.shutdown()

    def encode(self, job: ImageJob, codes: Tensor, drawn: Tensor | None = None) -> bytes:
        """The file of a job's codes [*layout.shape], whose `drawn` places [rows, columns] are
        drawn."""
        decoded = self.module.decode(codes[None], None if drawn is None else drawn[None])[0]
        image = to_image(decoded)
        return job.form.encode(image if job.edit is None else job.edit.over(image))

    def _render(self, job: ImageJob, codes: Tensor, drawn: Tensor | None = None) -> None:
        """Have the renderer's thread show a job's codes; without `drawn` the job is complete."""

        def render() -> None:
            try:
                if not job.cancelled.is_set():
                    _show(job, self.encode(job, codes, drawn), drawn is None)
            except BaseException as error:  # fails one image; the thread goes on
                _show(job, error, True)

        try:
            self._renderer.submit(render)
        except RuntimeError as error:  # no thread can be started
            self._refuse(job, error)
        if drawn is None:
            self._active.discard(job)

    def _take(self, most: int, wait: bool = True, gather: float = 0.0) -> list[ImageJob]:
        """Take jobs from the queue (see `JobQueue.take`) to draw them now."""
        jobs = self.queue.take(most, wait, gather)
        for job in jobs:
            known = 0 if job.given is None else self.layout.places_of(job.given[None] >= 0).sum()
            job.previews = self.layout.shown_at(job.partial, int(known))
        self._active.update(jobs)
        return jobs

    def _refuse(self, job: ImageJob, error: BaseException) -> None:
        self._active.discard(job)
        _show(job, error, True)

    def _count(self, images: int) -> None:
        try:
            self.on_batch(images)
        except Exception:  # a failing metric must not end the engine
            logger.exception("A batch of %d could not be counted.", images)

    def _work(self) -> None:
        """Run the thread; however it ends, answer all jobs that are left."""
        try:
            self._run()
            if not self.queue.closed:
                raise RuntimeError("The engine has returned.")
        except BaseException as error:  # of any kind: no other thread draws
            logger.critical("The engine has ended.", exc_info=error)
            self.failure = error
        self.queue.close()
        for job in [*self._active, *self.queue.drain()]:
            self._refuse(job, Ended())

    def _content(self, inputs: Inputs) -> Any:
        """Convert a prompt's inputs to the form that the engine needs."""
        return inputs

    @abstractmethod
    def _run(self) -> None:
        """Draw until the queue is closed and empty; the subclass starts the thread."""


def _show(job: ImageJob, shown: bytes | BaseException, is_complete: bool) -> None:
    """Hand a file or an error to the client's side."""
    try:
        job.show(shown, is_complete)
    except Exception:  # such as a closed event loop of the client's
        job.cancelled.set()
        logger.warning("An image could not be handed over.", exc_info=True)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Turn what is wrong with a field of a request into an APIError that names it."""
    try:
        yield
    except (UserError, BadSample) as error:
        reason = f"{field}: {str(error).rstrip('.')}."
        raise APIError(400, reason, "invalid_value", field) from error
