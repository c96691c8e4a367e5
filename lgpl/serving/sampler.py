"""lgpl's own sampler as an engine, whose images are those of `lgpl sample`: an image depends on its
seed and not on the rest of its batch."""

from collections.abc import Sequence

from torch import Tensor

from lgpl.generator import GeneratorModule
from lgpl.inference.drawing import Abandoned, Drawer, Request, passed
from lgpl.serving.engine import Engine, ImageJob


class SamplerEngine(Engine):
    """Batches are static: when one is drawn, what waits becomes the next, up to the batch size; a
    batch is rendered while the next is drawn."""

    def __init__(self, module: GeneratorModule, batch_size: int = 16, capacity: int = 64) -> None:
        super().__init__(module, module.model.condition, batch_size, capacity)
        self._drawer = Drawer(module, batch_size)
        self._thread.start()

    def _run(self) -> None:
        while batch := self._take(self.batch_size, gather=0.01):  # for images of the same moment
            self._count(len(batch))
            self._draw(batch)
            self.batch_size = self._drawer.batch_size  # smaller after an out-of-memory error
            self._active.clear()  # an abandoned batch leaves its jobs

    def _draw(self, batch: list[ImageJob]) -> None:
        requests = [
            Request(i, "", job.sampling, job.seed, inputs=job.prompt.content)
            for i, job in enumerate(batch)
        ]

        def watch(drawing: Sequence[Request], codes: Tensor, drawn: Tensor) -> None:
            if all(job.cancelled.is_set() for job in batch if job in self._active):
                raise Abandoned
            places = self.layout.places_of(drawn)
            for request, own, mask in zip(drawing, codes, places, strict=True):
                job, count = batch[request.number], int(mask.sum())
                if count < self.layout.places and passed(job.previews, count):
                    self._render(job, self.layout.unflatten(own[None].clone())[0], mask)

        try:
            for drawn, codes in self._drawer.batches(requests, watch):
                for request, own in zip(drawn, codes, strict=True):
                    self._render(batch[request.number], own)
        except Abandoned:
            return
        except Exception as error:  # fails one batch; the engine goes on
            for job in self._active & {*batch}:
                self._refuse(job, error)
