"""`lgpl serve`: pictures over HTTP, by the OpenAI images API."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from lgpl.checkpoints import add_trust
from lgpl.commands.parser import ArgumentParser
from lgpl.commands.sampling import add_sampling, sampling_of
from lgpl.errors import UserError
from lgpl.inference import DTYPES
from lgpl.lazy import needs

if TYPE_CHECKING:
    from lgpl.serving.engine import Engine
    from lgpl.serving.limits import Limits


def parser() -> ArgumentParser:
    p = ArgumentParser(
        prog="lgpl serve",
        description="Serve a generator over HTTP: the OpenAI images API. SIGTERM finishes what was "
        "asked for and ends.",
    )
    p.add_argument("--checkpoint", required=True, help="checkpoint of a generator")
    p.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    add_trust(p)
    p.add_argument("--name", help="the model's name in the API; the checkpoint's by default")
    p.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen at; 0.0.0.0 is all; one that other machines reach needs a token",
    )  # fmt: skip
    p.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    p.add_argument(
        "--token",
        help="bearer token to ask for; better LGPL_TOKEN in the environment: the process list "
        "shows options",
    )
    p.add_argument("--no-token", action="store_true", help="let other machines in without one, too")
    p.add_argument(
        "--trusted-host", action="append", default=[], metavar="NAME",
        help="name by which a reverse proxy passes requests on, beside localhost and loopback "
        "addresses; can be given more than once",
    )  # fmt: skip
    p.add_argument("--batch-size", type=int, default=16, help="pictures drawn together")
    p.add_argument("--queue", type=int, default=64, help="pictures that may wait; then 429")
    p.add_argument("--max-images", type=int, default=10, help="pictures of one request")
    p.add_argument("--timeout", type=float, default=600.0, help="seconds of one request")
    p.add_argument(
        "--engine",
        default="lgpl",
        choices=["lgpl", "vllm"],
        help="what draws: lgpl's own sampler, or vLLM, which takes an exported generator",
    )
    p.add_argument(
        "--vllm",
        type=dict[str, Any],
        default={},
        help="settings of vLLM's engine, such as --vllm.dtype float32",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    p.add_argument(
        "--dtype", choices=list(DTYPES),
        help="of the weights and cache of lgpl's sampler, float32 by default; vLLM's is "
        "--vllm.dtype",
    )  # fmt: skip
    add_sampling(p)  # where a request does not say it
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    sampling = sampling_of(options)
    for name in ("batch_size", "queue", "max_images", "timeout"):
        if not 0 < options[name] < math.inf:
            raise UserError(f"--{name.replace('_', '-')}: {options[name]} is not above 0.")
    if not 0 <= options.port < 65536:
        raise UserError(f"--port: {options.port} is not between 0 and 65535.")
    for package in ("fastapi", "uvicorn", "prometheus-client"):
        needs("lgpl serve", package, "serve")
    from lgpl.serving.api import create_app
    from lgpl.serving.metrics import Metrics
    from lgpl.serving.server import run

    limits, metrics = _limits(options), Metrics()
    engine = _engine(options, metrics.batch.observe)
    name = options.name or Path(options.checkpoint).stem
    app = create_app(engine, name, sampling, limits, metrics)
    run(app, engine, options.host, options.port, options.timeout)


def _limits(options: Namespace) -> Limits:
    """What requests may ask for, and who may send them."""
    from lgpl.serving.hosts import is_loopback, trusted_host
    from lgpl.serving.limits import Limits

    token, trusted = _token(options), frozenset(map(trusted_host, options.trusted_host))
    is_local = is_loopback(options.host)
    if token is None and not is_local and not options.no_token:
        raise UserError(
            f"--host: {options.host} lets other machines in, and no token is asked for; set "
            "LGPL_TOKEN in the environment, or give --no-token."
        )
    return Limits(
        images=min(options.max_images, options.queue),
        seconds=options.timeout,
        token=token,
        hosts=trusted if is_local or trusted else None,
    )


def _token(options: Namespace) -> str | None:
    """The bearer token to ask for."""
    token = os.environ.get("LGPL_TOKEN") if options.token is None else options.token
    token = token and token.strip()  # a header bears no space around it
    if token == "":
        raise UserError(
            "--token: it is empty, and so would guard nothing; leave it and LGPL_TOKEN out."
        )
    if options.no_token and token is not None:
        raise UserError("--no-token: there is a token; leave --token and LGPL_TOKEN out.")
    if options.token is not None:
        print(
            "lgpl: warning: the process list shows --token; set LGPL_TOKEN in the environment.",
            file=sys.stderr,
        )
    return token


def _engine(options: Namespace, on_batch: Callable[[int], None]) -> Engine:
    import torch

    from lgpl.inference import load_generator, usable_device

    device = usable_device(options.device)
    seats = (options.batch_size, options.queue, on_batch)
    if options.engine == "lgpl":
        if options.vllm:
            raise UserError("--vllm: these are settings of --engine vllm.")
        from lgpl.serving.sampler import SamplerEngine

        dtype = getattr(torch, DTYPES[options.dtype or "float32"])
        module = load_generator(
            options.checkpoint, options.tokenizer, device, dtype, trust=options.trust
        )
        return SamplerEngine(module, *seats)
    if options.dtype:
        raise UserError("--dtype: give --vllm.dtype with --engine vllm.")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("--engine: vllm is not installed; pip install vllm.")
    from lgpl.serving.vllm.engine import VLLMEngine

    return VLLMEngine(
        options.checkpoint, options.tokenizer, device, *seats, options.vllm, options.trust
    )
