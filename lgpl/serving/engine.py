"""One generator for many: pictures of different requests wait in one queue and are drawn together.

A picture depends on its seed and not on its neighbours, so it is the one that `lgpl sample` makes.
Batches are static: what waits when one is done, up to the batch size, is the next.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.condition import ClassCondition


class Full(Exception):
    """The queue has no place for these pictures."""


class _Abandoned(Exception):
    """Nobody waits for any picture of the batch any more."""


@dataclass(frozen=True)
class Prompt:
    """A class label, or features of a text."""

    condition: Tensor
    length: Tensor | None


@dataclass(eq=False)
class Picture:
    """One picture to draw.

    Attributes:
        partial: how often it is shown before it is whole.
        show: called with PNG bytes and whether the picture is whole, or with what went wrong; in
            the engine's thread.
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

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""

    def prepare(self, prompt: str) -> Prompt:
        """What a prompt says; a UserError where it says nothing that can be drawn."""

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Put pictures into the queue, all or none; `Full` where it is too long."""

    def close(self) -> None:
        """Finish what runs and end."""


class SamplerEngine:
    """Draws with lgpl's own sampler, in a thread of its own.

    Args:
        module: a generator with its tokenizer, ready to sample.
        batch_size: pictures drawn together.
        capacity: pictures that may wait.
        on_batch: called with the number of pictures of every batch.
    """

    def __init__(
        self,
        module: GeneratorModule,
        batch_size: int = 16,
        capacity: int = 64,
        on_batch: Callable[[int], None] = lambda pictures: None,
    ) -> None:
        self.module, self.batch_size, self.capacity = module, batch_size, capacity
        self.on_batch = on_batch
        self.codes = module.model.code_count
        rows, columns = module.model.grid
        blank = torch.zeros(1, rows, columns, dtype=torch.int64, device=module.device)
        self.height, self.width = module.decode(blank).shape[-2:]
        self._encoding = threading.Lock()
        if not isinstance(module.model.condition, ClassCondition):
            self.prepare("a picture")  # loads the text encoder, or tells what is missing
        self._queue: deque[Picture] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lgpl-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def prepare(self, prompt: str) -> Prompt:
        condition = self.module.model.condition
        if not isinstance(condition, ClassCondition):
            with self._encoding:  # alone, so that no neighbour's length changes a rounding
                features, lengths = self.module.encode_text([prompt], refuse_long=True)
            return Prompt(features[0], lengths[0])
        last = condition.num_classes - 1
        text = prompt.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= last):
            raise UserError(f"The prompt of a class model is a class, 0 to {last}.")
        return Prompt(torch.tensor(int(text), device=self.module.device), None)

    def submit(self, pictures: Sequence[Picture]) -> None:
        with self._changed:
            if self._closed or len(self._queue) + len(pictures) > self.capacity:
                raise Full
            self._queue.extend(pictures)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self.on_batch(len(batch))
            try:
                self._draw(batch)
            except _Abandoned:
                continue
            except Exception as error:  # one batch fails, the server goes on
                for picture in batch:
                    picture.show(error, True)

    def _next(self) -> list[Picture]:
        """The oldest pictures of one way of sampling; none when the engine is closed."""
        with self._changed:
            while True:
                self._queue = deque(p for p in self._queue if not p.cancelled.is_set())
                if self._queue or self._closed:
                    break
                self._changed.wait()
            batch: list[Picture] = []
            for picture in self._queue:
                if len(batch) < self.batch_size and picture.sampling == self._queue[0].sampling:
                    batch.append(picture)
            self._queue = deque(p for p in self._queue if p not in batch)
        return batch

    def _draw(self, batch: list[Picture]) -> None:
        rows, columns = self.module.model.grid
        # picture -> after how many rows it is shown
        shown = [{round(rows * (i + 1) / (p.partial + 1)) for i in range(p.partial)} for p in batch]

        def progress(count: int, codes: Tensor) -> None:
            if all(picture.cancelled.is_set() for picture in batch):
                raise _Abandoned
            row, column = divmod(count, columns)
            if column == 0 and row < rows:
                for picture, rows_shown, drawn in zip(batch, shown, codes, strict=True):
                    if row in rows_shown and not picture.cancelled.is_set():
                        picture.show(self._png(drawn[:count].view(row, columns)), False)

        lengths = [p.prompt.length for p in batch if p.prompt.length is not None]
        codes = self.module.sample_codes(
            torch.stack([p.prompt.condition for p in batch]),
            torch.stack(lengths) if lengths else None,
            batch[0].sampling,
            [p.seed for p in batch],
            progress,
        )
        for picture, drawn in zip(batch, codes, strict=True):
            if not picture.cancelled.is_set():
                picture.show(self._png(drawn), True)

    def _png(self, codes: Tensor) -> bytes:
        """The picture of codes [rows, columns], one alone as offline; grey where rows lack."""
        image = self.module.decode(codes[None])[0]
        whole = image.new_zeros(3, self.height, self.width)
        whole[:, : image.shape[1]] = image
        buffer = io.BytesIO()
        to_image(whole).save(buffer, "PNG")
        return buffer.getvalue()
