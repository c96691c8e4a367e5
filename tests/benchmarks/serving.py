"""A real `lgpl serve` under load: many connections of the openai client, on loopback.

    python -m tests.benchmarks.serving [--requests 2000] [--connections 64] [--queue 64 8]
        [--batch-size 32] [--engine lgpl]

The generators are tiny (one layer of 32, 16 codes), so what is measured is the server. Seconds are
of a request with its retries: where the queue is full, it is asked again after 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from tests.serving.generators import MINILM
from tests.serving.load import SMALL, asked_of_classes, asked_of_text, load
from tests.serving.servers import export, serve

MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "classes": ({}, asked_of_classes),
    "text": ({"condition": MINILM}, asked_of_text),
}
HEAD = ("model", "queue", "requests", "requests/s", "p50 s", "p95 s", "429")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--queue", type=int, nargs="+", default=[64, 8])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", default="lgpl", choices=["lgpl", "vllm"])
    options = parser.parse_args()
    marks = (options.requests // 4, options.requests)
    memory = [f"MiB after {mark}" for mark in marks]
    print("|", " | ".join([*HEAD, *memory]), "|\n|" + " --- |" * (len(HEAD) + 2))
    for name, (changes, ask) in MODELS.items():
        for queue in options.queue:
            with tempfile.TemporaryDirectory() as folder:
                places = ("--batch-size", str(options.batch_size), "--queue", str(queue))
                model = export(Path(folder), **SMALL, **changes)
                with serve(model, *places, "--engine", options.engine) as server:
                    seen = asyncio.run(
                        load(server, ask, options.requests, options.connections, marks)
                    )
            row = [name, queue, len(seen.pngs), f"{len(seen.pngs) / seen.elapsed:.0f}"]
            row += [f"{seen.p50:.3f}", f"{seen.p95:.3f}", seen.refused]
            row += [f"{seen.memory[mark]:.0f}" for mark in marks]
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
