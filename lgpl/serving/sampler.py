"""lgpl's own sampler as an engine: pictures of different requests are drawn together.

A picture depends on its seed and not on its neighbours, so it is the one that `lgpl sample` makes.
Batches are static: what waits when one is done, up to the batch size, is the next; it is painted
while the one after is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lgpl.generator import GeneratorModule
from lgpl.generator.conditions import join
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
        self._thread.start()

    def _run(self) -> None:
        while batch := self._take(self.batch_size, gather=GATHER):
            self._count(len(batch))
            self._try(batch)
            self._drawing.clear()  # of what was abandoned

    def _try(self, batch: list[Picture]) -> None:
        """Draw a batch; in halves, as all from then on, where the device's memory is too small."""
        try:
            self._draw(batch)
        except _Abandoned:
            return
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                self._refuse(batch[0], error)
                return
            self.batch_size = half = len(batch) // 2
            self._try(batch[:half])
            self._try(batch[half:])
        except Exception as error:  # one batch fails, the server goes on
            for picture in batch:
                self._refuse(picture, error)

    def _draw(self, batch: list[Picture]) -> None:
        rows, columns = self.module.model.grid
        shown = [self._painter.rows_shown(picture.partial) for picture in batch]

        def progress(count: int, codes: Tensor) -> None:
            if all(picture.cancelled.is_set() for picture in batch):
                raise _Abandoned
            row, column = divmod(count, columns)
            if column == 0 and row < rows:
                for picture, rows_shown, drawn in zip(batch, shown, codes, strict=True):
                    if row in rows_shown and not picture.cancelled.is_set():
                        self.paint(picture, drawn[:count].clone().view(row, columns), False)

        codes = self.module.sample_codes(
            join([picture.prompt.content for picture in batch]),
            [picture.sampling for picture in batch],
            [picture.seed for picture in batch],
            progress,
        )
        for picture, drawn in zip(batch, codes, strict=True):
            self.paint(picture, drawn, True)
