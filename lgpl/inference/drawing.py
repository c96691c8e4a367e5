"""The one loop that draws: requests in, images out, a batch at a time."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lgpl.errors import UserError
from lgpl.generator.conditions import Inputs, join
from lgpl.generator.module import GeneratorModule
from lgpl.generator.sampling import Sampling
from lgpl.progress import Bar

NO_IMAGE = -1  # number of an image that only keeps the ranks of a sharded model together
PENDING = 2  # batches that wait for the detokenizer before the generator does
COMPILED = 8  # batches from which on compiling the decoder pays on a GPU
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"


@dataclass(frozen=True, eq=False)
class Request:
    """One image; it depends on its own fields alone."""

    number: int  # its place in a set, by which files and metrics know it
    prompt: str  # what it shows, see `Condition.parse`
    sampling: Sampling
    seed: int  # of its random numbers
    given: Tensor | None = None  # codes [codes] in the flat order that are known, -1 at others
    inputs: Inputs | None = None  # the prompt, where it has been parsed already


def requests_for(
    prompts: Sequence[str], sampling: Sampling, seed: int, given: Tensor | None = None
) -> list[Request]:
    """A request for each prompt, numbered from 0; number i is drawn from the seed `seed` + i."""
    return [Request(i, p, sampling, seed + i, given) for i, p in enumerate(prompts)]


# After every step: the batch, `Progress`'s codes, and which are drawn; an error ends the batch.
Watch = Callable[[Sequence[Request], Tensor, Tensor], None]


class Abandoned(Exception):
    """Raised by a watch: nobody needs the batch any more."""


class Sink(Protocol):
    """What takes images as they come."""

    def lacks(self, request: Request) -> bool:
        """Whether it has to be drawn; not where an earlier run has left it."""

    def take(self, requests: Sequence[Request], images: Tensor) -> None:
        """Keep images [B, 3, H, W] in [-1, 1], on the CPU."""


class Drawer:
    """Draws requests in batches; in halves, as all from then on, where the device's memory is full.

    `compiled` code pays for many batches of that size on a GPU. With `cut`, prompts that are too
    long are not refused but cut, as training cuts captions.
    """

    def __init__(
        self, module: GeneratorModule, batch_size: int, compiled: bool = False, cut: bool = False
    ) -> None:
        self.module, self.batch_size = module, batch_size
        self._compiled, self._cut = compiled, cut
        self._decoder = module.decoder.compiled() if compiled else None

    def batches(
        self, requests: Sequence[Request], watch: Watch | None = None
    ) -> Iterator[tuple[list[Request], Tensor]]:
        """The requests in their order, with codes [B, *layout.shape] on the module's device; raises
        UserError where a prompt cannot be drawn, or not even one image fits into the memory."""
        start = 0
        while start < len(requests):
            batch = list(requests[start : start + self.batch_size])
            try:
                codes = self._draw(batch, watch)
            except torch.OutOfMemoryError as error:
                # Ranks that hold a sharded model together have to take the same steps.
                if len(batch) == 1 or self.module.device_mesh is not None:
                    raise UserError(
                        "--batch-size: not even one image fits into the device's memory; free "
                        "some, or take --dtype bf16."
                    ) from error
                self.batch_size = len(batch) // 2
                self._decoder = self.module.decoder.compiled() if self._compiled else None
                tqdm.write(f"The device's memory is full: {self.batch_size} images at a time now")
            else:
                start += len(batch)
                yield batch, codes

    def _draw(self, batch: list[Request], watch: Watch | None) -> Tensor:
        model = self.module.model
        unparsed = [r.prompt for r in batch if r.inputs is None]
        parsed = iter(model.condition.parse_each(unparsed, self._cut))
        none = torch.full((model.layout.codes,), -1)
        given = torch.stack([none if r.given is None else r.given.cpu() for r in batch])
        starts = [
            (r.prompt if r.inputs is None else id(r.inputs), known.numpy().tobytes())
            for r, known in zip(batch, given, strict=True)
        ]
        return self.module.sample_codes(
            join([next(parsed) if r.inputs is None else r.inputs for r in batch]),
            [r.sampling for r in batch],
            [r.seed for r in batch],
            None if watch is None else functools.partial(watch, batch),
            given if (given >= 0).any() else None,
            self._decoder if len(batch) == self.batch_size else None,
            [starts.index(start) for start in starts],
        )


def share_of(requests: Sequence[Request], rank: int, world: int, group: int = 1) -> list[Request]:
    """What one rank draws: every `world`-th request, or group of so many that stay together."""
    return [request for i, request in enumerate(requests) if i // group % world == rank]


def draw_into(
    module: GeneratorModule,
    requests: Sequence[Request],
    sink: Sink,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    group: int = 1,
    cut: bool = False,
) -> int:
    """Draw what a sink lacks of the requests of a rank, see `share_of`; the number of images drawn.

    A thread decodes and hands over one batch while the next is drawn. Raises UserError before the
    first image where a prompt cannot be drawn; with `cut`, one that is too long can be.
    """
    share = share_of(requests, rank, world, group)
    missing = [request for request in share if sink.lacks(request)]
    for prompt in dict.fromkeys(request.prompt for request in missing if not cut):
        module.model.condition.check(prompt)
    pays = module.device.type == "cuda" and len(missing) >= COMPILED * batch_size
    drawer = Drawer(module, batch_size, compiled=pays, cut=cut)
    waiting: list[Future[None]] = []
    done = len(share) - len(missing)
    bar = Bar(total=len(share), initial=done, unit="image", leave=False,
               desc="sampling", disable=rank > 0, bar_format=BAR)  # fmt: skip

    def watch(_: Sequence[Request], codes: Tensor, drawn: Tensor) -> None:
        bar.update(done + len(codes) * drawn.float().mean().item() - bar.n)

    with bar, ThreadPoolExecutor(1) as pool:
        for batch, codes in drawer.batches(missing, watch):
            done += len(batch)
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
    """Numbers and images [B, 3, H, W] in [-1, 1] of one rank's share of a set, a batch at a time.

    Batches go out in turn and are the same for any number of ranks, because rounding depends on
    their size. Every rank gets as many, as sharded models want it: the last may be of `NO_IMAGE`.
    Where `skip` says of the numbers that they need not be drawn, the images are None. Prompts are
    a data set's, and cut as in training.
    """
    drawer, sharded = Drawer(module, batch_size, cut=True), module.device_mesh is not None
    for turn in range(0, len(requests), world * batch_size):
        first = turn + rank * batch_size
        numbers = list(range(len(requests))[first : first + batch_size]) or [NO_IMAGE]
        is_filler = numbers[0] == NO_IMAGE
        if (is_filler and not sharded) or (not is_filler and skip(numbers)):
            yield numbers, None
        else:
            batch = [requests[max(number, 0)] for number in numbers]
            yield numbers, torch.cat([module.decode(codes) for _, codes in drawer.batches(batch)])


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
