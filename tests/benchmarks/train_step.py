"""Time and memory of a training step against transformers' Llama of the same dimensions.

    python -m tests.benchmarks.train_step [--size B] [--batch 8] [--rounds 5] [--compile]

All arms train in bf16 autocast with fused AdamW and a clipped norm, without dropout, which
transformers' Llama does not have. They take turns, `steps` at a time; a time is the median over the
rounds. Memory is taken in a process of its own for each arm: the highest point less what stood
before the model was built. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lgpl.generator import GeneratorModule
from lgpl.generator.blocks import FeedForward
from lgpl.generator.transformer import SIZES
from lgpl.training.optimizers import adamw
from tests.models import transformer

CODES, TEXT, FEATURES = 256, 120, 2048
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Of a process whose memory is taken: what is given back is counted as given back.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
Step = Callable[[], object]


def trainer(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """One step: loss, backward, clipping, AdamW."""
    optimizer = adamw(model, 1e-4, (0.9, 0.95), 0.05)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def llama(options: argparse.Namespace) -> Step:
    """transformers' own model and loss; 256 tokens in, 256 targets."""
    layers, heads, dim = SIZES[options.size]
    hidden = FeedForward(dim, 0.0).w1.out_features
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(DEVICE).train()
    if options.compile:
        model.compile()
    tokens = torch.randint(16384, (options.batch, CODES), device=DEVICE)
    return trainer(model, lambda: model(input_ids=tokens, labels=tokens).loss)


def lgpl(
    options: argparse.Namespace, grid: tuple[int, int] = (16, 16), lengths: str | None = None
) -> Step:
    """The generator; `lengths` says what captions a text model gets."""
    kind = {"num_classes": 1000} if lengths is None else {"text_features": FEATURES}
    build = partial(
        transformer, options.size, grid=grid, dropout=0.0, token_dropout=0.0,
        condition_dropout=0.0, **kind,
    )  # fmt: skip
    module = GeneratorModule(build, compile=options.compile)
    module.configure_model()
    batch = {"codes": torch.randint(16384, (options.batch, *grid), device=DEVICE)}
    if lengths is None:
        batch["class"] = torch.randint(1000, (options.batch,), device=DEVICE)
    else:
        bounds = {"full": (TEXT, TEXT), "mixed": (0, TEXT), "empty": (0, 0)}[lengths]
        batch["text_lengths"] = torch.randint(bounds[0], bounds[1] + 1, (options.batch,)).to(DEVICE)
        batch["text"] = torch.randn(options.batch, TEXT, FEATURES, device=DEVICE)
    module.to(DEVICE)
    return trainer(module.model.train(), lambda: module.loss(batch).mean())


ARMS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "transformers, 256 tokens": llama,
    "lgpl, class, 256 positions": lgpl,
    "lgpl, class, 376 positions": partial(lgpl, grid=(15, 25)),
    "lgpl, text 120 + 256, full captions": partial(lgpl, lengths="full"),
    "lgpl, text 120 + 256, mixed captions": partial(lgpl, lengths="mixed"),
    "lgpl, text 120 + 256, empty captions": partial(lgpl, lengths="empty"),
}


def memory(name: str, options: argparse.Namespace) -> float:
    """GiB that an arm needs."""
    return peak(lambda: ARMS[name](options), 3)


def peak(build: Callable[[], Step], steps: int) -> float:
    """GiB at the highest point of this process, or of the device, less what stood before."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = build()
    for _ in range(steps):
        step()
    if DEVICE.type == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def seconds(step: Step, steps: int) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--size", default="B")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--arms", nargs="+", default=list(ARMS))
    options = p.parse_args()
    os.environ |= GIVES_BACK
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {name: pool.apply(memory, (name, options)) for name in options.arms}
    steps = {name: ARMS[name](options) for name in options.arms}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        seconds(step, 2)
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, options.steps))
    first = options.arms[0]
    for name in steps:
        t = statistics.median(times[name])
        rate, ratio = options.batch / t, statistics.median(times[first]) / t
        print(
            f"{name:38} {rate:8.2f} samples/s {ratio:6.2f}x {peaks[name]:7.2f} GiB "
            f"{peaks[name] / peaks[first]:6.2f}x"
        )


if __name__ == "__main__":
    main()
