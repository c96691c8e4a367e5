"""What a machine's memory and products give, and how near sampling comes to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lgpl.generator import ParallelTransformer, Transformer
from lgpl.generator.decoders.raster import cache_dtype
from tests.benchmarks.train_step import DEVICE, seconds

Draw = Callable[[], object]


class Work(NamedTuple):
    """Of drawing a batch, the condition left out."""

    moved: int  # bytes of weights, keys and values, read from memory
    flops: int  # two for each number of a product
    steps: int


def raster_work(model: Transformer, rows: int, whole_cache: bool = False) -> Work:
    """A code of each row in a step. Every weight but the table of codes is read, and keys and
    values as far as they are written, or the `whole_cache`, as compiled code does."""
    codes, prefix = model.layout.codes, model.prefix_length
    seen = [prefix + codes if whole_cache else prefix + drawn for drawn in range(codes)]
    return _work(model, rows, [1] * codes, [1] * codes, seen)


def parallel_work(model: ParallelTransformer, rows: int, sizes: Sequence[int]) -> Work:
    """A group of codes in a step, behind the codes of the group before: all but the last group
    pass twice."""
    prefix = model.prefix_length
    before = [prefix, *sizes[:-1]]
    seen = [prefix + sum(sizes[: step + 1]) for step in range(len(sizes))]
    passing = [known + asked for known, asked in zip(before, sizes, strict=True)]
    return _work(model, rows, passing, sizes, seen)


def _work(
    model: Transformer | ParallelTransformer,
    rows: int,
    passing: Sequence[int],  # positions of a row that go through the blocks in each step
    predicted: Sequence[int],  # of these, through the head
    seen: Sequence[int],  # positions of the cache
) -> Work:
    blocks = sum(p.numel() for layer in model.layers for p in layer.parameters())
    head, dtype = model.output.weight.numel(), model.output.weight.dtype
    width = sum(x[0, :, 0].numel() for layer in model.new_cache(1, dtype, 1) for x in layer)
    kept = cache_dtype(DEVICE.type, dtype).itemsize
    moved = len(seen) * (blocks + head) * dtype.itemsize + rows * sum(seen) * width * kept
    attended = sum(new * all_ for new, all_ in zip(passing, seen, strict=True)) * width
    flops = 2 * rows * (sum(passing) * blocks + sum(predicted) * head + attended)
    return Work(moved, flops, len(seen))


def reached(draw: Draw, work: Work, dtype: torch.dtype, rounds: int) -> str:
    """A draw in words, against what memory and products give, which take turns with it; medians."""
    times = [(seconds(draw, 1), *_rates(dtype)) for _ in range(rounds + 1)][1:]
    taken, moved, flops = (statistics.median(values) for values in zip(*times, strict=True))
    by_memory, by_products = work.moved / moved, work.flops / flops
    return (
        f"{taken:.2f} s, {1e3 * taken / work.steps:.1f} ms a step; "
        f"{taken / max(by_memory, by_products):.2f} times the larger of {by_memory:.2f} s for "
        f"{work.moved / 1e9:.1f} GB at {moved / 1e9:.0f} GB/s and {by_products:.2f} s for "
        f"{work.flops / 1e9:.0f} GFLOP at {flops / 1e9:.0f} GFLOP/s, and "
        f"{taken / (by_memory + by_products):.2f} times the two together"
    )


def _rates(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes that are read in a second, one after the other, and FLOPs of a large product."""
    on_gpu = DEVICE.type == "cuda"
    source = torch.ones(2**28, device=DEVICE)  # 1 GiB, more than any cache holds
    side = 8192 if on_gpu else 2048
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    for step in (source.sum, lambda: a @ b):
        seconds(step, 1)
    reading, product = seconds(source.sum, 10), seconds(lambda: a @ b, 10)
    return 4 * source.numel() / reading, 2 * side**3 / product
