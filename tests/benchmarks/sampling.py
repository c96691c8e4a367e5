"""Time and memory of sampling against transformers' Llama and vLLM of the same dimensions.

    python -m tests.benchmarks.sampling [--size B] [--rows 16] [--batches 1 8]
        [--more-batches 2 4 16] [--dtypes bf16 float32] [--rounds 3]
        [--vllm-python .venv-serving/bin/python]

Random weights, `rows` of 16 codes of 16384, guidance 2, all codes kept. The parallel generator has
the same width and depth, and draws in 20 and in 32 steps. Every arm is a process of its own, asked
for one batch at a time: arms take turns, and a time is the median over the rounds. transformers
draws two sequences for each image, and a logits processor mixes them; its prefix is one token, as
lgpl's class is. vLLM runs in its own environment, where it is. Memory is taken in one more process
for each arm and batch: the highest point of one draw, weights included, less what stood before the
model was built; vLLM's holds the room for keys and values that it takes in advance (1 GiB on a
CPU). The machine should do nothing else.

On a CPU raster order and groups are set against the memory's bandwidth (a sum over 1 GiB) and the
rate of a large product, which take turns with them.

On a GPU lgpl has a compiled arm, too, and the last lines are of XL in bf16 by compiled code and
without, against the same limits: in raster order at 384 px, and in 20 steps at 256 px.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lgpl import cpus
from lgpl.generator import (
    ClassCondition,
    ParallelTransformer,
    Raster,
    Sampling,
    Transformer,
    generate,
)
from lgpl.generator.blocks import FeedForward
from lgpl.generator.conditions import Inputs
from lgpl.generator.decoders.groups import group_sizes
from lgpl.generator.packing import pack_weights
from lgpl.generator.transformer import SIZES
from tests.benchmarks.limits import Work, parallel_work, raster_work, reached
from tests.benchmarks.train_step import DEVICE, GIVES_BACK, seconds
from tests.models import labels, on, transformer

COLUMNS, CODEBOOK, CLASSES = 16, 16384, 1000
STEPS = (20, 32)  # of the parallel generator
SAMPLING = Sampling(guidance=2.0)
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
HEAD = ("dtype", "batch", "arm", "s", "images/s", "lgpl's time", "GiB")
Draw = Callable[[int], object]
AnyModel = TypeVar("AnyModel", Transformer, ParallelTransformer)


def weights(options: argparse.Namespace) -> Transformer:
    return ready(
        transformer(options.size, grid=(options.rows, COLUMNS), num_classes=CLASSES), options.dtype
    )


def parallel_weights(options: argparse.Namespace) -> ParallelTransformer:
    condition = partial(ClassCondition, num_classes=CLASSES, dropout=0.0)
    grid = (options.rows, COLUMNS)
    return ready(ParallelTransformer(condition, options.size, CODEBOOK, grid), options.dtype)


def ready(model: AnyModel, dtype: str) -> AnyModel:
    """For drawing, with a head that tells codes apart: a fresh one is zero."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.output.weight, 0.0, 0.02)
    return model.to(DEVICE, DTYPES[dtype]).eval()


def classes(batch: int) -> Inputs:
    return on(labels(*range(batch)), DEVICE)


def lgpl(options: argparse.Namespace) -> Draw:
    model = weights(options)
    pack_weights(model)
    return lambda batch: generate(model, classes(batch), SAMPLING)


def compiled(options: argparse.Namespace) -> Draw:
    model, decoder = weights(options), Raster().compiled()
    return lambda batch: generate(model, classes(batch), SAMPLING, decoder=decoder)


def parallel(steps: int, options: argparse.Namespace) -> Draw:
    model, sampling = parallel_weights(options), replace(SAMPLING, steps=steps)
    return lambda batch: generate(model, classes(batch), sampling)


def llama(cache: str, options: argparse.Namespace) -> Draw:
    """transformers' own `generate` with a cache of that kind."""
    from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

    layers, heads, dim = SIZES[options.size]
    hidden = FeedForward(dim, 0.0).w1.out_features
    config = LlamaConfig(
        vocab_size=CODEBOOK,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(DEVICE, DTYPES[options.dtype]).eval()
    codes = options.rows * COLUMNS

    class Guidance(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            c, u = scores.chunk(2)
            return (u + SAMPLING.guidance * (c - u)).repeat(2, 1)

    return lambda batch: model.generate(
        torch.arange(2 * batch, device=DEVICE)[:, None],
        max_new_tokens=codes,
        min_new_tokens=codes,
        do_sample=True,
        top_k=0,
        cache_implementation=cache,
        logits_processor=LogitsProcessorList([Guidance()]),
    )


def vllm(options: argparse.Namespace) -> Draw:
    """vLLM on an exported generator, in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    from lgpl.serving.vllm.client import Client
    from tests.serving.generators import class_config, export_generator

    with tempfile.TemporaryDirectory() as folder:
        grid = [options.rows, COLUMNS]
        sizes = {"size": options.size, "codebook_size": CODEBOOK, "grid": grid}
        export_generator(Path(folder), class_config(CLASSES), **sizes)
        # The others are on the same device.
        share = {"gpu_memory_utilization": 0.3} if DEVICE.type == "cuda" else {}
        dtype = str(DTYPES[options.dtype]).removeprefix("torch.")
        llm = LLM(model=folder, dtype=dtype, max_num_seqs=max(options.batches), **share)
        client = Client(folder)

    def draw(batch: int) -> None:
        images = list(range(batch))
        params = client.params(SAMPLING, seeds=images)
        drawn = llm.generate(client.prompts([labels(i) for i in images]), params, use_tqdm=False)
        assert client.codes(drawn).shape == (batch, *client.layout.shape)

    return draw


ARMS: dict[str, Callable[[argparse.Namespace], Draw]] = {
    "lgpl": lgpl,
    **{f"lgpl, {steps} steps": partial(parallel, steps) for steps in STEPS},
    "transformers, dynamic cache": partial(llama, "dynamic"),
    "transformers, static cache": partial(llama, "static"),
    "vLLM": vllm,
}
if DEVICE.type == "cuda":
    ARMS["lgpl, compiled"] = compiled


def resident(field: str) -> float:
    """GiB of this process: `VmRSS` now, `VmHWM` at the highest point."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def peak(build: Callable[[argparse.Namespace], Draw], options: argparse.Namespace, n: int) -> float:
    """GiB at the highest point of drawing n images; what building the model took is left out."""
    before = resident("VmRSS")
    draw = build(options)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        draw(n)
        return torch.cuda.max_memory_allocated() / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # the highest point is the present one
    draw(n)
    return resident("VmHWM") - before


def serve(options: argparse.Namespace) -> None:
    """Be one arm: `seconds 8` is answered by the time of 8 images, `peak 8` by their memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    draw: Draw | None = None
    for line in sys.stdin:
        what, batch = line.split()
        if what == "peak":
            value = peak(ARMS[options.arm], options, int(batch))
        else:
            draw = draw or ARMS[options.arm](options)
            value = seconds(partial(draw, int(batch)), 1)
        print(value, file=answers, flush=True)


class Arm:
    """A process that `serve`s one arm."""

    def __init__(self, name: str, options: argparse.Namespace, env: dict[str, str]) -> None:
        self.name = name
        self.said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        python = options.vllm_python if name == "vLLM" else sys.executable
        settings = json.dumps({**vars(options), "arm": name})
        # As lgpl's command line sets it; the threads of others wait as they do by default.
        waiting = {"GOMP_SPINCOUNT": str(cpus.SPINS)} if name.startswith("lgpl") else {}
        self.process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.sampling", "--serve", settings],
            env={**os.environ, **waiting, "PYTHONPATH": os.getcwd(), **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
        )  # fmt: skip

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()

    def ask(self, what: str, batch: int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(what, batch, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return float(answer)
        code = self.process.wait()
        self.said.seek(0)
        last = ([line.strip() for line in self.said if line.strip()] or ["it said nothing"])[-1]
        sys.exit(f"{self.name} ended with {code} at a batch of {batch}: {last}")


def compare(options: argparse.Namespace, names: list[str], bar: tqdm) -> None:
    """All arms at each batch size, and lgpl alone at some more."""
    sizes = sorted({*options.batches, *options.more_batches})
    times: dict[tuple[int, str], list[float]] = {}
    peaks: dict[tuple[int, str], float] = {}
    with ExitStack() as stack:
        arms = {name: stack.enter_context(Arm(name, options, {})) for name in names}
        for batch in sizes:
            asked = {n: arm for n, arm in arms.items() if n == "lgpl" or batch in options.batches}
            for arm in asked.values():
                bar.set_postfix_str(f"{options.dtype}, batch {batch}, {arm.name}, warming up")
                arm.ask("seconds", batch)
                bar.update()
            for _ in range(options.rounds):
                for name, arm in asked.items():
                    bar.set_postfix_str(f"{options.dtype}, batch {batch}, {name}")
                    times.setdefault((batch, name), []).append(arm.ask("seconds", batch))
                    bar.update()
    for batch, name in times:
        bar.set_postfix_str(f"{options.dtype}, batch {batch}, {name}, memory")
        with Arm(name, options, GIVES_BACK) as arm:
            peaks[batch, name] = arm.ask("peak", batch)
        bar.update()
    for (batch, name), values in times.items():
        t = statistics.median(values)
        ratio = t / statistics.median(times[batch, "lgpl"])
        row(options.dtype, batch, name, f"{t:.2f}", f"{batch / t:.3f}", f"{ratio:.2f}x",
            f"{peaks[batch, name]:.2f}")  # fmt: skip


def row(*cells: object) -> None:
    dtype, batch, arm, *rest = map(str, cells)
    values = " | ".join(f"{cell:>11}" for cell in rest)
    tqdm.write(f"| {dtype:7} | {batch:>5} | {arm:27} | {values} |")


def parts(options: argparse.Namespace) -> None:
    """Time to the first row of codes, and the share of the detokenizer."""
    from lgpl.tokenizer import VectorQuantizer, VQModel

    model, batch = weights(options), max(options.batches)
    pack_weights(model)
    tokenizer = VQModel(VectorQuantizer()).to(DEVICE).eval()
    tokenizer.pack()
    inputs, marks = classes(batch), []
    start = 0.0

    def note(codes: Tensor, drawn: Tensor) -> None:
        count = int(drawn[0].sum())
        if count in (COLUMNS, model.layout.codes):
            codes[:, count - 1].tolist()  # waits for the device
            marks.append(time.perf_counter() - start)

    decoding = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        codes = generate(model, inputs, SAMPLING, progress=note)
        with torch.no_grad():
            images = codes.split(1) if DEVICE.type == "cpu" else (codes,)  # as in drawing
            decoding.append(seconds(lambda images=images: [*map(tokenizer.decode, images)], 1))
    several = 2 if model.layout.codes > COLUMNS else 1  # marks of one batch
    first, whole = (
        statistics.median(marks[::several]),
        statistics.median(marks[several - 1 :: several]),
    )
    pixels = statistics.median(decoding)
    tqdm.write(
        f"{options.dtype}, batch {batch}: first row after {first:.2f} s of {whole:.2f} s; "
        f"detokenizer {pixels:.2f} s, {pixels / (whole + pixels):.0%} of both together"
    )


def against_limits(options: argparse.Namespace) -> None:
    """Raster order and groups on a CPU, for each batch."""
    model, groups = weights(options), parallel_weights(options)
    works = [raster_work(model, 2 * batch) for batch in options.batches]
    pack_weights(model)
    for batch, work in zip(options.batches, works, strict=True):
        report(options, batch, "raster", partial(generate, model, classes(batch), SAMPLING), work)
        for steps in STEPS:
            draw = partial(generate, groups, classes(batch), replace(SAMPLING, steps=steps))
            sizes = group_sizes(groups.layout, groups.layout.codes, steps)
            report(options, batch, f"{steps} steps", draw, parallel_work(groups, 2 * batch, sizes))


def on_a_gpu(rounds: int) -> None:
    """XL in bf16: raster order at 384 px, and groups at 256 px, compiled and not."""
    if DEVICE.type != "cuda":
        tqdm.write("XL, compiled: skipped, there is no GPU")
        return
    options = argparse.Namespace(size="XL", dtype="bf16", rounds=rounds)
    batch, model = 8, ready(transformer("XL", grid=(24, 24), num_classes=CLASSES), options.dtype)
    for name, decoder in (("raster", Raster()), ("raster, compiled", Raster().compiled())):
        work = raster_work(model, 2 * batch, whole_cache=decoder.is_compiled)
        draw = partial(generate, model, classes(batch), SAMPLING, decoder=decoder)
        report(options, batch, name, draw, work)
    del model
    options.rows, batch, steps = 16, 64, 20
    groups = parallel_weights(options)
    work = parallel_work(groups, 2 * batch, group_sizes(groups.layout, groups.layout.codes, steps))
    plain = groups.decoder()
    for name, decoder in (
        (f"{steps} steps", plain),
        (f"{steps} steps, compiled", plain.compiled()),
    ):
        sampling = replace(SAMPLING, steps=steps)
        draw = partial(generate, groups, classes(batch), sampling, decoder=decoder)
        report(options, batch, name, draw, work)


def report(
    options: argparse.Namespace, batch: int, name: str, draw: Callable[[], object], work: Work
) -> None:
    said = reached(draw, work, DTYPES[options.dtype], options.rounds)
    tqdm.write(f"{options.size}, {options.dtype}, batch {batch}, {name}: {said}")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--size", default="B", choices=list(SIZES))
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    p.add_argument("--more-batches", type=int, nargs="*", default=[2, 4, 16], help="lgpl alone")
    p.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--vllm-python", default=".venv-serving/bin/python")
    p.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.serve:
        return serve(argparse.Namespace(**options.serve))
    names = list(ARMS)
    if not Path(options.vllm_python).exists():
        names.remove("vLLM")
        print(f"vLLM: skipped, there is no {options.vllm_python} (`make test-serving` makes it)")
    row(*HEAD)
    row("---", "--:", "---", *["--:"] * 4)
    more = len({*options.more_batches} - {*options.batches})
    drawn = (len(options.batches) * len(names) + more) * (options.rounds + 2)
    each = [argparse.Namespace(**vars(options), dtype=dtype) for dtype in options.dtypes]
    with tqdm(total=len(each) * drawn, unit="batch", desc="sampling") as bar:
        for settings in each:
            compare(settings, names, bar)
    for settings in each:
        parts(settings)
        if DEVICE.type == "cpu":
            against_limits(settings)
    on_a_gpu(options.rounds)


if __name__ == "__main__":
    main()
