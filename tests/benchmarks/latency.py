"""What clients wait for an image where images join between two steps, and where they do not.

    python -m tests.benchmarks.latency [--clients 1 8 64] [--requests 192] [--rounds 3]
        [--batch-size 16] [--size 4 2 256] [--grid 8 8] [--codebook-size 1024]

"static" draws a whole batch before it takes the next, as lgpl did at first. Each client asks for
one image after the other, and waits a random time in between (exponential, on average what an image
takes that is drawn alone); both engines see the same times. Weights are random, of the emoji
generator's size by default; guidance 2. The engines take turns in one process, without HTTP, and
values are medians over the rounds. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from lgpl import cpus

cpus.prepare()  # as the command line does, before torch is imported

from lgpl.generator import GeneratorModule, Sampling  # noqa: E402
from lgpl.inference import load_generator  # noqa: E402
from lgpl.serving.engine import Engine, ImageJob  # noqa: E402
from lgpl.serving.sampler import SamplerEngine  # noqa: E402
from tests.serving.generators import class_config, export_generator, export_tokenizer  # noqa: E402


class StaticEngine(SamplerEngine):
    """Batches of strangers, one after the other."""

    _run = SamplerEngine._run_in_turn


class Seen(NamedTuple):
    p50: float  # seconds
    p95: float
    rate: float  # images a second


ENGINES = {"static": StaticEngine, "joining": SamplerEngine}


def image(engine: Engine, number: int) -> float:
    """Seconds until an image is there."""
    start, answered = time.perf_counter(), threading.Event()
    shown: list[Any] = []

    def show(file: bytes | BaseException, _: bool) -> None:
        shown.append(file)
        answered.set()

    prompt = engine.prepare(str(number % 10))
    engine.queue.put([ImageJob(prompt, Sampling(guidance=2.0), number, 0, show)])
    answered.wait()
    assert isinstance(shown[0], bytes), shown
    return time.perf_counter() - start


def load(engine: Engine, clients: int, requests: int, pause: float) -> Seen:
    """So many clients at once, until all requests are answered."""
    seconds: list[float] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for i in range(number, requests, clients):
            time.sleep(rng.expovariate(1 / pause))
            seconds.append(image(engine, i))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    cuts = statistics.quantiles(seconds, n=20)
    return Seen(cuts[9], cuts[18], len(seconds) / elapsed)


def generator(options: argparse.Namespace) -> GeneratorModule:
    with tempfile.TemporaryDirectory() as temporary:
        folder, codes = Path(temporary), options.codebook_size
        export_tokenizer(folder / "tokenizer", codes)
        sizes = {"size": options.size, "grid": options.grid, "codebook_size": codes}
        export_generator(folder / "generator", class_config(10), **sizes)
        return load_generator(str(folder / "generator"), None, "cpu")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    p.add_argument("--requests", type=int, default=192, help="at 8 clients and more; 1 asks fewer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--size", type=int, nargs=3, default=[4, 2, 256])
    p.add_argument("--grid", type=int, nargs=2, default=[8, 8])
    p.add_argument("--codebook-size", type=int, default=1024)
    options = p.parse_args()
    module = generator(options)
    engines = {
        name: engine(module, options.batch_size, max(options.clients))
        for name, engine in ENGINES.items()
    }
    alone = statistics.median(image(engine, 0) for engine in [*engines.values()] * 3)
    print(f"an image alone: {alone:.3f} s")
    print("| clients | engine | p50, s | of static | p95, s | of static | images/s | of static |")
    print("|" + " --- |" * 8)
    for clients in options.clients:
        seen: dict[str, list[Seen]] = {name: [] for name in engines}
        requests = max(options.requests if clients > 1 else options.requests // 6, 2)
        for turn in range(options.rounds):
            for name in list(engines)[:: 1 if turn % 2 == 0 else -1]:
                seen[name].append(load(engines[name], clients, requests, alone))
        median = {
            name: Seen(*(statistics.median(values) for values in zip(*found, strict=True)))
            for name, found in seen.items()
        }
        for name, found in median.items():
            cells = [
                f"{value:.3f} | {value / base:.2f}×"
                for value, base in zip(found, median["static"], strict=True)
            ]
            print("|", " | ".join([str(clients), name, *cells]), "|", flush=True)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
