"""`lgpl serve`: a generator over HTTP, by the OpenAI images API. SIGTERM finishes what was accepted
and ends."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from lgpl import hub, shipped
from lgpl.commands import parsing
from lgpl.errors import UserError
from lgpl.inference import DTYPES
from lgpl.lazy import needs

if TYPE_CHECKING:
    from lgpl.serving.engine import Engine
    from lgpl.serving.limits import Limits


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl serve", description=__doc__)
    parsing.add_generator(p, shipped.EMOJI)
    p.add_argument("--name", help="the model's name in the API; the run's by default")
    p.add_argument("--any-model", action="store_true", help="let requests name any model")
    host = "address to listen at, 0.0.0.0 for all; one that other machines reach needs a token"
    p.add_argument("--host", default="127.0.0.1", help=host)
    p.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    token = "bearer token of requests; LGPL_TOKEN in the environment shows in no process list"
    p.add_argument("--token", help=token)
    p.add_argument("--no-token", action="store_true", help="let other machines in without a token")
    proxy = "name by which a reverse proxy forwards requests, beside loopback ones; may be repeated"
    p.add_argument("--trusted-host", action="append", default=[], metavar="NAME", help=proxy)
    origin = "whose web pages may send requests, as https://app.example.org; may be repeated"
    p.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help=origin)
    form = "of requests that say none; b64_json by default, and url for a model named dall-e"
    p.add_argument("--response-format", choices=["b64_json", "url"], help=form)
    link = "seconds until the link of an image expires (response_format: url)"
    p.add_argument("--link-seconds", type=float, default=3600.0, help=link)
    p.add_argument("--batch-size", type=int, default=16, help="images drawn together")
    p.add_argument("--queue", type=int, default=64, help="images that may wait; further get 429")
    p.add_argument("--max-images", type=int, default=10, help="images of one request")
    p.add_argument("--timeout", type=float, default=600.0, help="seconds of one request")
    engine = "lgpl's own sampler, or vLLM, which needs an exported generator"
    p.add_argument("--engine", default="lgpl", choices=["lgpl", "vllm"], help=engine)
    vllm = "settings of vLLM's engine, such as --vllm.dtype float32"
    p.add_argument("--vllm", type=dict[str, Any], default={}, help=vllm)
    dtype = "of the sampler's weights, float32 by default; for vLLM use --vllm.dtype"
    p.add_argument("--dtype", choices=list(DTYPES), help=dtype)
    parsing.add_sampling(p)  # defaults of requests
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    parsing.sampling_of(options)  # a mistake is said before anything is loaded
    for name in ("batch_size", "queue", "max_images", "timeout", "link_seconds"):
        if not 0 < (value := options[name]) < math.inf:
            raise UserError(f"{parsing.flag(name)} must be > 0 and finite, got {value}")
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be from 0 to 65535, got {options.port}")
    for package in ("fastapi", "uvicorn", "prometheus-client", "python-multipart"):
        needs("lgpl serve", package, "serve")
    from lgpl.serving.api import create_app
    from lgpl.serving.server import run

    limits, engine = _limits(options), _engine(options)
    sampling = parsing.sampling_of(options, engine.module.sampling)
    engine.check(sampling)
    app = create_app(engine, options.name or model_name(options.checkpoint), sampling, limits)
    run(app, engine, options.host, options.port, options.timeout)


def model_name(checkpoint: str) -> str:
    """What the API calls a model: a run by its folders below `runs`, as `quickstart/stage2`, or by
    the last two; an exported folder or another file by its own name, one of a hub by OWNER/NAME."""
    if hub.is_name(checkpoint):
        return hub.parse(checkpoint).repo
    path = Path(os.path.abspath(checkpoint))
    if path.parent.name != "checkpoints":
        return path.name if path.is_dir() else path.stem
    folders = path.parent.parent.parts[1:]
    runs = [i for i, folder in enumerate(folders[:-1]) if folder == "runs"]
    return "/".join(folders[runs[-1] + 1 :] if runs else folders[-2:])


def _limits(options: Namespace) -> Limits:
    """What requests may ask for, and who may send them."""
    from lgpl.serving.limits import Limits, is_loopback, trusted_host
    from lgpl.serving.methods import origin_of

    token = os.environ.get("LGPL_TOKEN") if options.token is None else options.token
    token = token and token.strip()  # headers drop surrounding spaces
    trusted = frozenset(map(trusted_host, options.trusted_host))
    is_local = is_loopback(options.host)
    if token == "":
        raise UserError("--token must not be empty; leave it and LGPL_TOKEN out for none")
    if options.no_token and token is not None:
        raise UserError("--no-token excludes a token; leave --token and LGPL_TOKEN out")
    if token is None and not is_local and not options.no_token:
        said = f"--host must be a loopback address without a token, got {options.host!r}"
        ways = "set LGPL_TOKEN in the environment, or give --no-token to let other machines in"
        raise UserError(f"{said}; {ways}")
    if options.token is not None:
        warning = "the process list shows --token; set LGPL_TOKEN in the environment."
        print(f"lgpl: warning: {warning}", file=sys.stderr)
    images = min(options.max_images, options.queue)
    hosts = trusted if is_local or trusted else None
    return Limits(
        images=images,
        seconds=options.timeout,
        token=token,
        hosts=hosts,
        origins=frozenset(map(origin_of, options.cors_origin)),
        any_model=options.any_model,
        response_format=options.response_format,
        link_seconds=options.link_seconds,
    )


def _engine(options: Namespace) -> Engine:
    import torch

    from lgpl.inference import load_generator, usable_device

    checkpoint, device = (options.checkpoint, options.tokenizer), usable_device(options.device)
    sizes = (options.batch_size, options.queue)
    if options.engine == "lgpl":
        if options.vllm:
            raise UserError("--vllm needs --engine vllm, got --engine lgpl")
        from lgpl.serving.sampler import SamplerEngine

        dtype = getattr(torch, DTYPES[options.dtype or "float32"])
        decoder = parsing.decoder_of(options)
        module = load_generator(*checkpoint, device, dtype, trust=options.trust, decoder=decoder)
        return SamplerEngine(module, *sizes)
    if options.dtype:
        raise UserError(f"--dtype needs --engine lgpl, got {options.dtype}; give --vllm.dtype")
    if options.decoder:
        raise UserError(f"--decoder needs --engine lgpl, got {options.decoder}")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("--engine vllm needs the package vllm: pip install vllm")
    from lgpl.serving.vllm.engine import VLLMEngine

    return VLLMEngine(*checkpoint, device, *sizes, options.vllm, options.trust)
