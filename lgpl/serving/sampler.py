"""lgpl's own sampler as an engine, whose images are those of `lgpl sample`: an image depends on its
seed and not on what is drawn beside it."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Raster
from lgpl.generator.conditions import join
from lgpl.generator.decoders.base import make_task
from lgpl.generator.decoders.raster import Drawing, decode_together
from lgpl.inference.drawing import Abandoned, Drawer, Request, passed
from lgpl.serving.engine import Engine, ImageJob

GATHER = 0.01  # seconds in which an idle engine waits for images of the same moment


class Group:
    """Jobs that were taken at the same moment and know as many codes, and what is drawn of them."""

    def __init__(self, module: GeneratorModule, jobs: list[ImageJob]) -> None:
        model, given = module.model, None
        if _known(jobs[0]):
            given = torch.stack([job.given for job in jobs if job.given is not None])
        inputs = join([job.prompt.content for job in jobs])
        sampling, seeds = [job.sampling for job in jobs], [job.seed for job in jobs]
        starts = [_start(job) for job in jobs]
        same = [starts.index(start) for start in starts]
        self.jobs = jobs
        self.codes = torch.zeros(len(jobs), model.layout.codes, dtype=torch.int64)
        self.drawing = Drawing(model, make_task(model, inputs, sampling, seeds, given, same))
        if self.drawing.known is not None:
            self.codes[:, self.drawing.known.places] = self.drawing.known.codes.cpu()

    def pick(self) -> int:
        """Draw the next code of each image; how many there are then."""
        places, codes = self.drawing.pick()
        assert isinstance(places, slice)
        self.codes[:, places] = codes.cpu()
        return int(places.stop)

    @property
    def is_abandoned(self) -> bool:
        return all(job.cancelled.is_set() for job in self.jobs)


class SamplerEngine(Engine):
    """Images join between two steps, up to the batch size: none waits for strangers' to end.

    The rows of all groups go through the model's matrices together, each at its own place. With
    another decoder than `Raster`, batches are drawn one after the other.
    """

    def __init__(self, module: GeneratorModule, batch_size: int = 16, capacity: int = 64) -> None:
        super().__init__(module, module.model.condition, batch_size, capacity)
        self._drawer = Drawer(module, batch_size)
        self._groups: list[Group] = []
        self._thread.start()

    def _run(self) -> None:
        if type(self.module.decoder) is not Raster:
            return self._run_in_turn()
        self.module.model.eval()
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):  # as in `generate`
            while True:
                jobs = self._join()
                if jobs:
                    self._count(len(jobs))
                    for alike in _by_known(jobs):
                        self._begin(alike)
                elif not self._groups:
                    return  # closed and empty
                self._step()

    def _join(self) -> list[ImageJob]:
        """What waits, as far as there is room; an idle engine waits for it.

        Images are as long as each other, so groups of one would stay so for ever, and each costs a
        step to read its prompt and its own part of attention. So images join by the quarter of a
        batch where that many wait, and by half of one where a whole batch does.
        """
        idle, room, waiting = not self._groups, self.batch_size - self._drawn(), len(self.queue)
        many = self.batch_size // (2 if waiting >= self.batch_size else 4)
        if room < max(1, min(waiting, many)):
            return []
        return self._take(room, idle, GATHER if idle else 0.0)

    def _drawn(self) -> int:
        return sum(len(group.jobs) for group in self._groups)

    def _begin(self, jobs: list[ImageJob]) -> None:
        """Read the prompts of new images; in halves, as all from then on, where memory is full."""
        try:
            self._groups.append(Group(self.module, jobs))
        except torch.OutOfMemoryError:
            half = len(jobs) // 2
            self.batch_size = max(1, self._drawn() + half)
            if half:
                self._begin(jobs[:half])
                self._begin(jobs[half:])
            elif self._groups:  # what they take is free when they end
                while self._groups:
                    self._step()
                self._begin(jobs)
            else:
                full = "not even one image fits into the device's memory"
                self._refuse(jobs[0], UserError(f"--batch-size: {full}; take --dtype bf16."))
        except Exception as error:  # fails these; the engine goes on
            for job in jobs:
                self._refuse(job, error)

    def _step(self) -> None:
        """Draw one more code of every image, show what is due, drop what is whole or left."""
        try:
            for group in self._groups:
                self._show_group(group, group.pick())
            self._groups = [group for group in self._groups if not self._is_over(group)]
            if self._groups:
                decode_together(self.module.model, [group.drawing for group in self._groups])
        except Exception as error:  # fails what is drawn; the engine goes on
            for job in [job for group in self._groups for job in group.jobs]:
                if job in self._active:
                    self._refuse(job, error)
            self._groups = []

    def _show_group(self, group: Group, count: int) -> None:
        places, is_whole = count // self.layout.depth, count == self.layout.codes
        for job, own in zip(group.jobs, group.codes, strict=True):
            if is_whole or passed(job.previews, places):
                codes = self.layout.unflatten(own[None].clone())[0].to(self.module.device)
                drawn = (torch.arange(self.layout.places) < places).view(self.layout.rows, -1)
                self._render(job, codes, None if is_whole else drawn)

    def _is_over(self, group: Group) -> bool:
        if group.is_abandoned:
            self._active.difference_update(group.jobs)
        return group.drawing.is_done or group.is_abandoned

    def _run_in_turn(self) -> None:
        while batch := self._take(self.batch_size, gather=GATHER):
            self._count(len(batch))
            # Those of fewer steps first: they need not wait until others have ended.
            for _, alike in itertools.groupby(sorted(batch, key=_steps), key=_steps):
                self._draw([*alike])
            self.batch_size = self._drawer.batch_size  # smaller after an out-of-memory error
            self._active.clear()  # an abandoned batch leaves its jobs

    def _draw(self, batch: list[ImageJob]) -> None:
        requests = [
            Request(i, "", job.sampling, job.seed, job.given, job.prompt.content)
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


def _start(job: ImageJob) -> tuple[int, bytes]:
    """What the sequences of two images have in common if it is equal."""
    return id(job.prompt.content), b"" if job.given is None else job.given.numpy().tobytes()


def _known(job: ImageJob) -> int:
    return 0 if job.given is None else int((job.given >= 0).sum())


def _by_known(jobs: Sequence[ImageJob]) -> list[list[ImageJob]]:
    """Jobs that can be drawn together from their first code on: with as many given before it."""
    groups: dict[int, list[ImageJob]] = {}
    for job in jobs:
        groups.setdefault(_known(job), []).append(job)
    return list(groups.values())


def _steps(job: ImageJob) -> int:
    return job.sampling.steps or 0  # 0 for the decoder's own number
