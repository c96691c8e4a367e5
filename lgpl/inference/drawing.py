"""The one loop that draws: requests in, images out, a batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lgpl.errors import UserError
from lgpl.generator.conditions import join
from lgpl.generator.module import GeneratorModule
from lgpl.inference.request import Request

# After every step: the batch, and `Progress`'s codes and which are drawn. What it raises ends the
# batch.
Watch = Callable[[Sequence[Request], Tensor, Tensor], None]

NO_IMAGE = -1  # number of an image that only keeps the ranks of a sharded model together
PENDING = 2  # batches that wait for the detokenizer before the generator does
COMPILED = 8  # batches from which on compiling the decoder pays on a GPU
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"


class Sink(Protocol):
    """What takes images as they come."""

    def lacks(self, request: Request) -> bool:
        """Whether it has to be drawn; not where an earlier run has left it."""

    def take(self, requests: Sequence[Request], images: Tensor) -> None:
        """Keep images [B, 3, H, W] in [-1, 1], on the CPU."""


class Drawer:
    """Draws requests in batches; in halves, as all from then on, where the device's memory is full.

    A image does not depend on the others of its batch.

    Args:
        module: a generator, ready to sample.
        batch_size: images drawn together.
        compiled: by compiled code, which pays for many batches of that size on a GPU.
        cut: prompts that are too long, as training cuts captions, instead of refusing them.
    """

    def __init__(
        self, module: GeneratorModule, batch_size: int, compiled: bool = False, cut: bool = False
    ) -> None:
        self.module, self.batch_size, self._compiled = module, batch_size, compiled
        self._cut = cut
        self._decoder = module.decoder.compiled() if compiled else None

    def batches(
        self, requests: Sequence[Request], watch: Watch | None = None, bar: tqdm | None = None
    ) -> Iterator[tuple[list[Request], Tensor]]:
        """The requests in their order, with codes [B, rows, columns] on the module's device.

        Raises:
            UserError: a prompt cannot be drawn, or not even one image fits into the memory.
        """
        start = 0
        while start < len(requests):
            batch = list(requests[start : start + self.batch_size])
            before = bar.n if bar is not None else 0.0
            try:
                codes = self._draw(batch, watch, bar)
            except torch.OutOfMemoryError as error:
                # Ranks that hold a sharded model together have to take the same steps.
                if len(batch) == 1 or self.module.device_mesh is not None:
                    raise UserError(
                        "--batch-size: not even one image fits into the device's memory; free "
                        "some, or take --dtype bf16."
                    ) from error
                if bar is not None:
                    bar.n = before
                self.batch_size = len(batch) // 2
                self._decoder = self.module.decoder.compiled() if self._compiled else None
                tqdm.write(f"The device's memory is full: {self.batch_size} images at a time now")
                continue
            start += len(batch)
            yield batch, codes

    def _draw(self, batch: list[Request], watch: Watch | None, bar: tqdm | None) -> Tensor:
        before = bar.n if bar is not None else 0.0

        def progress(codes: Tensor, drawn: Tensor) -> None:
            if bar is not None:
                bar.update(before + len(codes) * drawn.float().mean().item() - bar.n)
            if watch is not None:
                watch(batch, codes, drawn)

        condition = self.module.model.condition
        parsed = condition.parse_each([r.prompt for r in batch if r.inputs is None], self._cut)
        fresh = iter(parsed)
        return self.module.sample_codes(
            join([next(fresh) if r.inputs is None else r.inputs for r in batch]),
            [r.sampling for r in batch],
            [r.seed for r in batch],
            progress,
            self._given(batch),
            self._decoder if len(batch) == self.batch_size else None,
            _same(batch),
        )

    def _given(self, batch: list[Request]) -> Tensor | None:
        """Codes [B, N] that are known."""
        if all(request.given is None for request in batch):
            return None
        none = torch.full((self.module.model.layout.codes,), -1)
        return torch.stack([none if r.given is None else r.given.cpu() for r in batch])


def _same(batch: list[Request]) -> list[int]:
    """For each request the first one with the same prompt and the same given codes."""
    keys = [
        (
            r.prompt if r.inputs is None else id(r.inputs),
            None if r.given is None else r.given.cpu().numpy().tobytes(),
        )
        for r in batch
    ]
    return [keys.index(key) for key in keys]


def draw_into(
    module: GeneratorModule,
    requests: Sequence[Request],
    sink: Sink,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> int:
    """Draw what a sink lacks of this rank's share; gives the number of images drawn.

    The share is every request at `rank` modulo `world`. A thread decodes and hands over one batch
    while the next is drawn.

    Raises:
        UserError: a prompt cannot be drawn, which is raised before the first image.
    """
    share = requests[rank::world]
    missing = [request for request in share if sink.lacks(request)]
    for prompt in dict.fromkeys(request.prompt for request in missing):
        module.model.condition.check(prompt)
    compiled = module.device.type == "cuda" and len(missing) >= COMPILED * batch_size
    drawer = Drawer(module, batch_size, compiled)
    waiting: list[Future[None]] = []
    bar = tqdm(total=len(share), initial=len(share) - len(missing), unit="image", leave=False,
               desc="sampling", disable=rank > 0, bar_format=BAR)  # fmt: skip
    with bar, ThreadPoolExecutor(1) as pool:
        for batch, codes in drawer.batches(missing, bar=bar):
            waiting.append(pool.submit(_hand_over, module, codes.cpu(), batch, sink))
            if len(waiting) > PENDING:
                waiting.pop(0).result()
        for last in waiting:
            last.result()
    return len(missing)


def draw_in_turn(
    module: GeneratorModule,
    requests: Sequence[Request],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    skip: Callable[[list[int]], bool] = lambda numbers: False,
) -> Iterator[tuple[list[int], Tensor | None]]:
    """The images of a set in batches that are the same for any number of ranks.

    They are dealt out in turn, as `dealt` says. Prompts are a data set's, and cut as in training.

    Args:
        skip: whether a batch of these numbers need not be drawn.

    Yields:
        The numbers of a batch, and images [B, 3, H, W] in [-1, 1]; None where nothing was drawn.
    """
    drawer, sharded = Drawer(module, batch_size, cut=True), module.device_mesh is not None
    for numbers in dealt(len(requests), batch_size, rank, world):
        idle = numbers[0] == NO_IMAGE and not sharded
        if idle or (numbers[0] != NO_IMAGE and skip(numbers)):
            yield numbers, None
            continue
        batch = [requests[max(number, 0)] for number in numbers]
        yield numbers, torch.cat([module.decode(codes) for _, codes in drawer.batches(batch)])


def dealt(total: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
    """The numbers of one rank's images, a batch at a time.

    The batches are the same for any number of ranks, because rounding depends on a batch's size;
    they are dealt out in turn. Every rank gets the same number of them, as sharded models want it:
    the last may be of `NO_IMAGE`.
    """
    batches = -(-total // batch_size)
    for turn in range(-(-batches // world)):
        first = (turn * world + rank) * batch_size
        numbers = list(range(first, min(first + batch_size, total)))
        yield numbers or [NO_IMAGE]


def passed(shown: list[int], count: int) -> bool:
    """Whether so many drawn places are enough for the next showing, which is then taken off."""
    due = [n for n in shown if n <= count]
    del shown[: len(due)]
    return bool(due)


def paint(module: GeneratorModule, codes: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] on the CPU; decoded in halves where the memory is full."""
    try:
        return module.decode(codes).cpu()
    except torch.OutOfMemoryError:
        if len(codes) == 1:
            raise
    return torch.cat([paint(module, half) for half in codes.chunk(2)])


def _hand_over(module: GeneratorModule, codes: Tensor, requests: list[Request], sink: Sink) -> None:
    """On a GPU in a stream of its own, beside the next batch's."""
    gpu = module.device.type == "cuda"
    with torch.cuda.stream(torch.cuda.Stream(module.device)) if gpu else contextlib.nullcontext():
        images = paint(module, codes.to(module.device))
    sink.take(requests, images)
