"""Real servers for tests, and the answers that are expected of them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from fastapi import FastAPI

from lgpl.data.transforms import to_image
from lgpl.generator import GeneratorModule, Sampling
from lgpl.inference import load_generator
from lgpl.serving.api import create_app
from lgpl.serving.engine import Engine
from lgpl.serving.limits import Limits
from lgpl.serving.server import Server as UvicornServer
from tests.conftest import ROOT, wait_until
from tests.serving.generators import Config, class_config, export_generator, export_tokenizer

TOKEN = "a secret"
PROGRAM = "from lgpl.cli import main; main()"
# Draws only while the file GATE is there.
GATED = """
import os, time
from lgpl.cli import main
from lgpl.serving import sampler

def waits(*args, group=sampler.Group):
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.02)
    return group(*args)

sampler.Group = waits
main()
"""
LONG = {"size": [4, 4, 128], "grid": [24, 24]}  # takes a second or more


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    checkpoint: Path
    log: list[str]
    gate: Path

    def accepted(self) -> float:
        """Images that wait, are drawn or are complete."""
        return self.metric("lgpl_waiting_images") + self.metric("lgpl_batch_images_sum")

    @functools.cached_property
    def module(self) -> GeneratorModule:
        return load_generator(str(self.checkpoint), None, "cpu")

    def offline(self, prompt: int | str, seed: int, sampling: Sampling = Sampling()) -> bytes:
        """The PNG of the sampler alone, with neither neighbours nor server."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the server's: sums are rounded by how they are shared out
        try:
            inputs = self.module.model.condition.parse(str(prompt))
            image = self.module.sample(inputs, sampling, [seed])[0]
        finally:
            torch.set_num_threads(threads)
        buffer = io.BytesIO()
        to_image(image).save(buffer, "PNG")
        return buffer.getvalue()

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": TOKEN, "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        given = {"headers": {"Authorization": f"Bearer {TOKEN}"}, "timeout": 60, **options}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, **given)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def export(folder: Path, condition: Config = class_config(10), **changes: Any) -> Path:
    """A generator, of classes by default, beside its tokenizer."""
    export_tokenizer(folder / "tokenizer")
    export_generator(folder / "generator", condition, **changes)
    return folder / "generator"


@contextlib.contextmanager
def serve(
    checkpoint: Path,
    *options: str,
    program: str = PROGRAM,
    env: Mapping[str, str] = {"OMP_NUM_THREADS": "1"},  # which nobody changes
) -> Iterator[Server]:
    """`lgpl serve` as a process of its own; with GATED it draws while `Server.gate` exists."""
    gate = checkpoint.with_name("gate")
    gate.touch()
    command = [sys.executable, "-c", program, "serve", "--port", "0", *options]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **env,
            **{"PYTHONPATH": str(ROOT), "LGPL_TOKEN": TOKEN},
            "GATE": str(gate),
            "MALLOC_ARENA_MAX": "1",  # or what it holds depends on which thread took it
        },
    )
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("".join(log))
        # Read on, or the pipe fills up and the server waits.
        threading.Thread(target=log.extend, args=(process.stderr,), daemon=True).start()
        yield Server(found[1], process, checkpoint, log, gate)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def in_process(
    engine: Engine, limits: Limits = Limits(), app: FastAPI | None = None, host: str = "127.0.0.1"
) -> Iterator[int]:
    """The server in a thread of this process; its port."""
    app = app or create_app(engine, "generator", limits=limits)
    server = UvicornServer(app, engine, host, 0, limits.seconds)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
