"""Time and memory of sampling against transformers' Llama and vLLM of the same dimensions.

    python -m tests.benchmarks.sampling [--size B] [--rows 16] [--batches 1 8]
        [--sizes 1 2 4 8 16] [--rounds 3] [--vllm-python .venv-serving/bin/python]

Random weights, `rows` of 16 codes of 16384, guidance 2, all codes kept. Arms take turns; a time is
the median over the rounds. transformers draws two sequences for each image, and a logits processor
mixes them; its prefix is one token, as lgpl's class is. vLLM runs in its own environment, after the
others, where it is. Memory is the highest point of a process of its own, with the weights. The
machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lgpl.generator import Sampling, Transformer, generate
from lgpl.generator.blocks import FeedForward
from lgpl.generator.transformer import SIZES
from lgpl.tokenizer import VectorQuantizer, VQModel
from tests.serving.generators import export_generator

COLUMNS, CODEBOOK, SCALE = 16, 16384, 2.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
Draw = Callable[[int], object]


def transformer(options: argparse.Namespace) -> Transformer:
    """Weights that tell codes apart: a fresh head is zero."""
    torch.manual_seed(0)
    model = Transformer(options.size, grid=(options.rows, COLUMNS), num_classes=1000)
    torch.nn.init.normal_(model.output.weight, 0.0, 0.02)
    return model.eval()


def lgpl(options: argparse.Namespace, dtype: torch.dtype) -> Draw:
    model = transformer(options).to(DEVICE, dtype)

    def draw(batch: int) -> Tensor:
        return generate(model, torch.arange(batch, device=DEVICE), sampling=Sampling(SCALE))

    return draw


def llama(cache: str, options: argparse.Namespace, dtype: torch.dtype) -> Draw:
    """transformers' own `generate` with a cache of that kind."""
    from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

    layers, heads, dim = SIZES[options.size]
    hidden, count = FeedForward(dim, 0.0).w1.out_features, options.rows * COLUMNS
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
    model = LlamaForCausalLM(config).to(DEVICE, dtype).eval()

    class Guidance(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            c, u = scores.chunk(2)
            return (u + SCALE * (c - u)).repeat(2, 1)

    def draw(batch: int) -> Tensor:
        return model.generate(
            torch.arange(1, 2 * batch + 1, device=DEVICE)[:, None],  # 0 would be padding
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=True,
            top_k=0,
            cache_implementation=cache,
            logits_processor=LogitsProcessorList([Guidance()]),
        )

    return draw


def arms(options: argparse.Namespace) -> dict[str, Callable[[torch.dtype], Draw]]:
    return {
        "lgpl": partial(lgpl, options),
        "transformers, dynamic cache": partial(llama, "dynamic", options),
        "transformers, static cache": partial(llama, "static", options),
    }


def seconds(draw: Draw, batch: int) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    draw(batch)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(arm: str, options: argparse.Namespace, dtype: torch.dtype, batch: int) -> float:
    """GiB at the highest point of this process, or of the device."""
    arms(options)[arm](dtype)(batch)
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(options: argparse.Namespace, name: str) -> None:
    """Arms in turn at each batch size; then what lgpl alone tells."""
    dtype = DTYPES[name]
    draws = {arm: build(dtype) for arm, build in arms(options).items()}
    for draw in draws.values():
        draw(1)
    for batch in options.batches:
        times: dict[str, list[float]] = {arm: [] for arm in draws}
        for _ in range(options.rounds):
            for arm, draw in draws.items():
                times[arm].append(seconds(draw, batch))
        mine = statistics.median(times["lgpl"])
        for arm, values in times.items():
            t = statistics.median(values)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak = pool.apply(memory, (arm, options, dtype, batch))
            print(
                f"{name:8} batch {batch:2} {arm:28} {t:7.2f} s {batch / t:7.3f} images/s "
                f"{t / mine:6.2f}x lgpl's time {peak:6.2f} GiB",
                flush=True,
            )
    for batch in options.sizes:
        rate = batch / seconds(draws["lgpl"], batch)
        print(f"{name:8} batch {batch:2} {'lgpl':28} {rate:7.3f} images/s", flush=True)


def parts(options: argparse.Namespace, name: str) -> None:
    """Time to the first row of codes, and the share of the detokenizer."""
    model, batch = transformer(options).to(DEVICE, DTYPES[name]), max(options.batches)
    stamps: list[float] = []
    labels, start = torch.arange(batch, device=DEVICE), time.perf_counter()

    def note(count: int, codes: Tensor) -> None:
        if count % COLUMNS == 0:
            codes[:, count - 1].tolist()  # waits for the device
            stamps.append(time.perf_counter() - start)

    codes = generate(model, labels, sampling=Sampling(SCALE), progress=note)
    tokenizer = VQModel(VectorQuantizer()).to(DEVICE).eval()
    with torch.no_grad(), torch.autocast(DEVICE.type, DTYPES[name], enabled=name != "float32"):
        decoding = seconds(lambda _: tokenizer.decode(codes), batch)
    share = decoding / (stamps[-1] + decoding)
    print(
        f"{name:8} batch {batch:2} first row after {stamps[0]:.2f} s of {stamps[-1]:.2f} s; "
        f"detokenizer {decoding:.2f} s, {share:.0%} of the whole"
    )


VLLM = """
import json, sys, time, statistics
import vllm
from lgpl.generator import Sampling
from lgpl.serving.vllm import Client
if __name__ == "__main__":
    path, dtype, batches, rounds = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:5])
    llm = vllm.LLM(model=path, dtype=dtype, max_num_seqs=max(batches))
    client = Client(path)
    found = {}
    for batch in batches:
        def draw():
            params = client.params(Sampling(guidance=2.0), seeds=list(range(batch)))
            start = time.perf_counter()
            llm.generate(client.class_prompts(list(range(batch))), params, use_tqdm=False)
            return time.perf_counter() - start
        draw()
        found[batch] = statistics.median(draw() for _ in range(rounds))
    print("FOUND " + json.dumps(found))
"""


def vllm(options: argparse.Namespace, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_generator(
            Path(folder),
            size=options.size,
            codebook_size=CODEBOOK,
            grid=[options.rows, COLUMNS],
            num_classes=1000,
        )
        script = Path(folder, "draw.py")
        script.write_text(VLLM)
        dtype = "float32" if name == "float32" else "bfloat16"
        done = subprocess.run(
            [options.vllm_python, script, folder, dtype, json.dumps(options.batches),
             str(options.rounds)],
            env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": os.getcwd()},
            capture_output=True, text=True,
        )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("FOUND "):
            for batch, t in json.loads(line.removeprefix("FOUND ")).items():
                rate = int(batch) / t
                print(f"{name:8} batch {batch:>2} {'vLLM':28} {t:7.2f} s {rate:7.3f} images/s")
            return
    sys.exit(f"vLLM ended with {done.returncode}:\n{done.stderr[-2000:]}")


def main(args: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--size", default="B", choices=list(SIZES))
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    p.add_argument("--sizes", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    p.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--vllm-python", default=".venv-serving/bin/python")
    options = p.parse_args(args)
    for name in options.dtypes:
        compare(options, name)
        parts(options, name)
        if Path(options.vllm_python).exists():
            vllm(options, name)
        else:
            print(f"{name:8} vLLM: skipped, there is no {options.vllm_python} (make test-serving)")


if __name__ == "__main__":
    main()
