"""Many clients at once, and what they saw."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import openai

from tests.serving.servers import TOKEN, Server

Ask = Callable[[int], tuple[str, int]]  # number of a request -> prompt and seed

SMALL: dict[str, Any] = {"size": [1, 2, 32], "grid": [4, 4]}  # so that the server is what counts
WORDS = ("a pizza", "an umbrella", "dog", "a red heart", "the flag of Brazil", "night sky", "!")


def asked_of_classes(i: int) -> tuple[str, int]:
    return str(i % 10), i


def asked_of_text(i: int) -> tuple[str, int]:
    return f"{WORDS[i % len(WORDS)]} {i % 5}", i % 50


@dataclass
class Seen:
    """The results of a number of requests.

    Attributes:
        pngs: image of each request.
        seconds: of each request, its retries included.
        refused: answers 429 of a full queue, each of which was retried.
        elapsed: seconds of all.
        memory: requests answered -> MiB that the server held then.
    """

    pngs: dict[int, bytes] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    elapsed: float = 0.0
    memory: dict[int, float] = field(default_factory=dict)

    @property
    def p50(self) -> float:
        return quantiles(self.seconds, n=20)[9]

    @property
    def p95(self) -> float:
        return quantiles(self.seconds, n=20)[18]


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def load(
    server: Server, ask: Ask, requests: int, connections: int, marks: tuple[int, ...] = ()
) -> Seen:
    """Send requests, as many at a time as there are connections.

    Args:
        ask: prompt and seed of each.
        marks: after how many answers the server's memory is looked at.
    """
    seen, numbers, begun = Seen(), iter(range(requests)), time.monotonic()

    async def one(client: openai.AsyncOpenAI, i: int) -> bytes:
        prompt, seed = ask(i)
        while True:
            try:
                answer = await client.images.generate(prompt=prompt, extra_body={"seed": seed})
            except openai.RateLimitError:
                seen.refused += 1
                await asyncio.sleep(0.02)
                continue
            assert answer.data
            return base64.b64decode(answer.data[0].b64_json or "")

    async def connection() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=600
        ) as client:
            for i in numbers:
                started = time.monotonic()
                seen.pngs[i] = await one(client, i)
                seen.seconds.append(time.monotonic() - started)
                if len(seen.pngs) in marks:
                    seen.memory[len(seen.pngs)] = resident(server.process.pid)

    await asyncio.gather(*(connection() for _ in range(connections)))
    seen.elapsed = time.monotonic() - begun
    return seen
