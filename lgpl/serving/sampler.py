"""lgpl's own sampler as an engine: pictures of different requests are drawn together.

A picture depends on its seed and not on its neighbours, so it is the one that `lgpl sample` makes.
Batches are static: what waits when one is done, up to the batch size, is the next; it is painted
while the one after is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lgpl.generator import GeneratorModule
from lgpl.inference.drawing import Drawer, passed
from lgpl.inference.request import Request
from lgpl.serving.engine import Engine, Picture

GATHER = 0.01  # seconds in which pictures that are asked for together come together


class _Abandoned(Exception):
    """Nobody waits for any picture of the batch any more."""


class SamplerEngine(Engine):
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
        super().__init__(module, module.model.condition, batch_size, capacity, on_batch)
        self._drawer = Drawer(module, batch_size)
        self._thread.start()

    def _run(self) -> None:
        while batch := self._take(self.batch_size, gather=GATHER):
            self._count(len(batch))
            self._draw(batch)
            self.batch_size = self._drawer.batch_size  # smaller where the memory was full
            self._drawing.clear()  # of what was abandoned

    def _draw(self, batch: list[Picture]) -> None:
        requests = [
            Request(i, "", picture.sampling, picture.seed, inputs=picture.prompt.content)
            for i, picture in enumerate(batch)
        ]
        layout = self.module.model.layout
        shown = [layout.shown_at(picture.partial) for picture in batch]

        def watch(drawing: Sequence[Request], codes: Tensor, drawn: Tensor) -> None:
            if all(picture.cancelled.is_set() for picture in batch if picture in self._drawing):
                raise _Abandoned
            places = layout.places_of(drawn)
            for request, own, its in zip(drawing, codes, places, strict=True):
                picture, count = batch[request.number], int(its.sum())
                due = count < layout.places and passed(shown[request.number], count)
                if due and not picture.cancelled.is_set():
                    self.paint(picture, layout.unflatten(own[None].clone())[0], its)

        try:
            for drawn, codes in self._drawer.batches(requests, watch):
                for request, own in zip(drawn, codes, strict=True):
                    self.paint(batch[request.number], own)
        except _Abandoned:
            return
        except Exception as error:  # one batch fails, the server goes on
            for picture in batch:
                if picture in self._drawing:
                    self._refuse(picture, error)
