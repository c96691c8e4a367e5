"""What every engine has in common, and the queue that its pictures wait in."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.conditions import Condition, Inputs
from lgpl.serving.painter import Painter

logger = logging.getLogger(__name__)


class Full(Exception):
    """The queue has no place for these pictures."""


class Ended(Exception):
    """The engine takes no pictures any more: it is closed, or has failed for good."""


@dataclass(frozen=True)
class Prompt:
    """What a picture is drawn from.

    Attributes:
        content: a class or a text, in the form that the engine wants.
        positions: of the generator's sequence that it takes.
    """

    content: Any
    positions: int


@dataclass(eq=False)
class Picture:
    """One picture to draw.

    Attributes:
        partial: how often it is shown before it is whole.
        show: called with PNG bytes and whether the picture is whole, or with what went wrong; in
            a thread of the engine.
        cancelled: set by whoever does not want it any more.
    """

    prompt: Prompt
    sampling: Sampling
    seed: int
    partial: int
    show: Callable[[bytes | BaseException, bool], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class PictureQueue:
    """Pictures that wait, first in, first out; between the server's thread and the engine's.

    Args:
        capacity: pictures that may wait.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pictures: deque[Picture] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, pictures: Sequence[Picture]) -> None:
        """All or none; `Full` or `Ended` where that cannot be."""
        with self._changed:
            if self._closed:
                raise Ended
            self._forget_cancelled()
            if len(self._pictures) + len(pictures) > self.capacity:
                raise Full
            self._pictures.extend(pictures)
            self._changed.notify()

    def has_room(self, pictures: int) -> bool:
        """Whether so many more could be put; `Ended` where none can any more."""
        with self._changed:
            if self._closed:
                raise Ended
            self._forget_cancelled()
            return len(self._pictures) + pictures <= self.capacity

    def take(self, most: int, wait: bool = True, gather: float = 0.0) -> list[Picture]:
        """The oldest pictures; none only where the queue is closed and empty, or not to wait.

        Args:
            most: pictures at the most.
            wait: for a picture where there is none.
            gather: seconds to wait for others beside it.

        Raises:
            BaseException: what the queue was closed with.
        """
        with self._changed:
            while True:
                self._forget_cancelled()
                if gather and self._pictures:
                    self._changed.wait_for(
                        lambda: self._closed or len(self._pictures) >= most, timeout=gather
                    )
                    self._forget_cancelled()
                if self._error is not None:
                    raise self._error
                if self._pictures or self._closed or not wait:
                    return [self._pictures.popleft() for _ in range(min(most, len(self)))]
                self._changed.wait()

    def drain(self) -> list[Picture]:
        """All that wait, also where the queue was closed with an error."""
        with self._changed:
            pictures = list(self._pictures)
            self._pictures.clear()
            return pictures

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    def close(self, error: BaseException | None = None) -> None:
        """Take no more; what waits can still be taken, unless there is an error to raise there."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify()

    def _forget_cancelled(self) -> None:
        self._pictures = deque(p for p in self._pictures if not p.cancelled.is_set())


class Engine(ABC):
    """Whatever draws for the server, in a thread of its own, what waits in a queue; one more thread
    paints what is drawn.

    Nothing that a picture, its client or the metrics do ends the thread. Where it ends all the
    same before it is closed, `failure` says why, and every picture is answered with `Ended`.

    Args:
        module: a generator with its tokenizer, ready to decode.
        condition: of that generator, with its weights; understands prompts.
        batch_size: pictures drawn together.
        capacity: pictures that may wait.
        on_batch: called with the number of pictures of every batch.

    Raises:
        UserError: what prompts need, such as a text encoder, cannot be used.
    """

    def __init__(
        self,
        module: GeneratorModule,
        condition: Condition,
        batch_size: int,
        capacity: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self.module, self.batch_size, self.on_batch = module, batch_size, on_batch
        self.codes = module.model.layout.codes
        self._painter = Painter(module)
        self.height, self.width = self._painter.height, self._painter.width
        self.condition = condition
        condition.load()  # or tell what is missing
        self._encoding = threading.Lock()
        self._queue = PictureQueue(capacity)
        self._painting = ThreadPoolExecutor(1, "lgpl-painter")  # one: in the order of the steps
        self.failure: BaseException | None = None
        self._drawing: set[Picture] = set()  # taken from the queue, neither drawn nor refused
        self._thread = threading.Thread(target=self._work, name="lgpl-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether it draws; False once it is closed or has failed for good."""
        return self._thread.is_alive() and self.failure is None

    def prepare(self, prompt: str) -> Prompt:
        """What a prompt says; a UserError where it says nothing that can be drawn."""
        with self._encoding, torch.no_grad():
            inputs = self.condition.parse(prompt)
        return Prompt(self._content(inputs), self.condition.positions(inputs))

    def has_room(self, pictures: int) -> bool:
        """Whether so many more could be submitted; `Ended` where none can any more."""
        return self._queue.has_room(pictures)

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Put pictures into the queue, all or none; `Full` or `Ended` where that cannot be."""
        self._queue.put(pictures)

    def close(self) -> None:
        """Finish what was submitted and end."""
        self._queue.close()
        self._thread.join()
        self._painting.shutdown()

    def paint(self, picture: Picture, codes: Tensor, drawn: Tensor | None = None) -> None:
        """Have codes [*layout.shape] of a picture shown, by the thread that paints.

        Args:
            drawn: [rows, columns], the places that are drawn; None where the picture is whole.
        """
        try:
            self._painting.submit(self._paint, picture, codes, drawn)
        except RuntimeError as error:  # there is no thread to be had
            self._refuse(picture, error)
        if drawn is None:
            self._drawing.discard(picture)

    def _paint(self, picture: Picture, codes: Tensor, drawn: Tensor | None) -> None:
        if picture.cancelled.is_set():
            return
        whole = drawn is None
        try:
            shown: bytes | BaseException = self._painter.png(codes, drawn)
        except BaseException as error:  # one picture fails, the thread goes on
            shown, whole = error, True
        _show(picture, shown, whole)

    def _take(self, most: int, wait: bool = True, gather: float = 0.0) -> list[Picture]:
        """`PictureQueue.take`, of what is to be drawn now."""
        pictures = self._queue.take(most, wait, gather)
        self._drawing.update(pictures)
        return pictures

    def _refuse(self, picture: Picture, error: BaseException) -> None:
        """Answer a picture with what went wrong."""
        self._drawing.discard(picture)
        _show(picture, error, True)

    def _count(self, pictures: int) -> None:
        """Report a batch."""
        try:
            self.on_batch(pictures)
        except Exception:  # what counts is not what draws
            logger.exception("A batch of %d could not be counted.", pictures)

    def _work(self) -> None:
        """The thread: it draws, and however it ends, nobody waits for it in vain."""
        try:
            self._run()
            if not self._queue.closed:
                raise RuntimeError("The engine has returned.")
        except BaseException as error:  # of any kind: there is no other thread that draws
            logger.critical("The engine has ended.", exc_info=error)
            self.failure = error
        self._queue.close()
        for picture in [*self._drawing, *self._queue.drain()]:
            self._refuse(picture, Ended())

    def _content(self, inputs: Inputs) -> Any:
        """The inputs of a prompt in the form that the engine wants."""
        return inputs

    @abstractmethod
    def _run(self) -> None:
        """Draw until the queue is closed and empty, in the thread, which the subclass starts."""


def _show(picture: Picture, shown: bytes | BaseException, whole: bool) -> None:
    """Give a picture, or what went wrong, to whoever waits for it."""
    try:
        picture.show(shown, whole)
    except Exception:  # as where the client's event loop is closed
        picture.cancelled.set()
        logger.warning("Nobody could be given a picture.", exc_info=True)
