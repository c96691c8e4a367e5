"""What the server asks of whatever draws, and the queue that its pictures wait in."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lgpl.errors import UserError
from lgpl.generator import Sampling


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
    show: Callable[[bytes | Exception, bool], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine(Protocol):
    """What the server needs of whatever draws."""

    width: int
    height: int
    codes: int  # of a picture
    rows: int  # of codes
    classes: int | None  # of a class model; None where prompts are texts

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""

    @property
    def alive(self) -> bool:
        """Whether it draws; False once it is closed or has failed for good."""

    def prepare(self, prompt: str) -> Prompt:
        """What a prompt says; a UserError where it says nothing that can be drawn."""

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Put pictures into the queue, all or none; `Full` or `Ended` where that cannot be."""

    def close(self) -> None:
        """Finish what was submitted and end."""


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

    def take(self, most: int, alike: bool = False, wait: bool = True) -> list[Picture]:
        """The oldest pictures; none where the queue is empty and closed.

        Args:
            most: pictures at the most.
            alike: only those that are sampled as the oldest is.
            wait: for a picture where there is none.
        """
        with self._changed:
            self._forget_cancelled()
            while wait and not self._pictures and not self._closed:
                self._changed.wait()
                self._forget_cancelled()
            fitting = (
                picture
                for picture in self._pictures
                if not alike or picture.sampling == self._pictures[0].sampling
            )
            taken = list(itertools.islice(fitting, most))
            self._pictures = deque(p for p in self._pictures if p not in taken)
        return taken

    def close(self) -> None:
        """Take no more; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _forget_cancelled(self) -> None:
        self._pictures = deque(p for p in self._pictures if not p.cancelled.is_set())


def class_of(prompt: str, classes: int) -> int:
    """The class that the prompt of a class model names.

    Raises:
        UserError: it names none.
    """
    text = prompt.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < classes):
        raise UserError(f"The prompt of a class model is a class, 0 to {classes - 1}.")
    return int(text)
