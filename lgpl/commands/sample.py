"""`lgpl sample`: pictures from a generator's checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from lgpl.checkpoints.trust import add_trust
from lgpl.commands.parser import ArgumentParser
from lgpl.commands.sampling import add_sampling, sampling_of
from lgpl.errors import UserError
from lgpl.generator.sampling import Sampling
from lgpl.inference import DTYPES

if TYPE_CHECKING:
    from lgpl.generator import Condition


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl sample", description="Make pictures from prompts or classes.")
    p.add_argument("--checkpoint", required=True, help="checkpoint of a generator")
    p.add_argument("--tokenizer", help="checkpoint of its tokenizer, where it has moved")
    add_trust(p)
    p.add_argument("--prompt", nargs="+", default=[], help="what to show; several make a grid")
    p.add_argument("--prompts", help="a text file, one prompt a line")
    p.add_argument("--label", nargs="+", type=str, default=[], help="classes, by number or name")
    p.add_argument("--count", type=int, default=1, help="pictures of each prompt or class")
    p.add_argument("--balanced", type=int, help="pictures over all classes in turn")
    p.add_argument("--seed", type=int, default=0, help="picture i is drawn from seed + i")
    p.add_argument("--batch-size", type=int, default=16, help="pictures drawn together")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    p.add_argument(
        "--dtype", default="float32", choices=list(DTYPES),
        help="of the generator's weights and its cache; the tokenizer decodes in float32",
    )  # fmt: skip
    p.add_argument(
        "--int8", action="store_true", help="keep the generator's weights in 8 bits (torchao)"
    )
    p.add_argument("--out", required=True, help="picture to write, a grid of several, or FOLDER/")
    p.add_argument("--columns", type=int, default=8, help="pictures in a row of the grid")
    p.add_argument("--tile", type=int, help="pixels of a picture in the grid; its own by default")
    add_sampling(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    sampling = sampling_of(options)
    for name in ("count", "balanced", "batch_size", "columns", "tile"):
        value = options[name]
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: {value} is below 1.")
    many = options.out.endswith("/") or Path(options.out).is_dir()
    if options.balanced and (not many or options.label):
        raise UserError(
            "--balanced: takes the classes in turn into --out FOLDER/, without --label."
        )
    from lgpl.data.transforms import to_image
    from lgpl.image_files import grid, image_path, save
    from lgpl.inference import (
        ImageFolder,
        ImageList,
        draw_into,
        load_generator,
        requests_for,
        usable_device,
    )

    out = Path(options.out) if many else image_path(options.out)
    given = list(options.prompt) + (_lines(options.prompts) if options.prompts else [])
    import torch

    module = load_generator(
        options.checkpoint, options.tokenizer, usable_device(options.device),
        getattr(torch, DTYPES[options.dtype]), options.int8, options.trust,
    )  # fmt: skip
    if options.balanced:
        prompts = in_turn(module.model.condition, options.balanced)
    else:
        prompts = chosen(module.model.condition, given, options.label, options.count)
    requests = requests_for(prompts, sampling, options.seed)
    if many:
        rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
        folder = ImageFolder(out, settings(options, prompts, sampling))
        drawn = draw_into(module, requests, folder, options.batch_size, rank, world)
        print(f"{out}: {drawn} pictures drawn of {len(requests)}, {sampling}")
        return
    pictures = ImageList()
    draw_into(module, requests, pictures, options.batch_size)
    images = pictures.images()
    if len(images) == 1:
        save(to_image(images[0]), out)
    else:
        save(grid(images, prompts, options.columns, options.tile), out)
    last = requests[-1].seed
    print(f"{out}: {len(images)} pictures, seeds {options.seed} to {last}, {sampling}")


def chosen(
    condition: Condition, prompts: Sequence[str], labels: Sequence[str], count: int
) -> list[str]:
    """The prompt of each picture, `count` of each.

    Args:
        condition: of the generator.
        prompts: given as --prompt.
        labels: given as --label.

    Raises:
        UserError: none is given as the condition wants it.
    """
    given = {"prompt": prompts, "label": labels}
    wanted = given.pop(condition.option)
    ((other, unwanted),) = given.items()
    if unwanted or not wanted:
        raise UserError(f"The checkpoint takes --{condition.option}, not --{other}.")
    return [prompt for prompt in wanted for _ in range(count)]


def in_turn(condition: Condition, count: int) -> list[str]:
    """So many prompts, all classes in turn."""
    every = condition.prompts()
    if every is None:
        raise UserError("--balanced: the checkpoint has no classes, whose number is known.")
    return [every[i % len(every)] for i in range(count)]


def settings(options: Namespace, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
    """All that the pictures of a folder depend on."""
    from lgpl.inference.sinks import newest

    return {
        "checkpoint": options.checkpoint,
        "modified": newest(Path(options.checkpoint)),
        "tokenizer": options.tokenizer,
        "images": len(prompts),
        "conditions": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seed": options.seed,
        "dtype": options.dtype,
        "int8": options.int8,
        **asdict(sampling),
    }


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path} cannot be read as text ({error}).") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts: {path} holds no prompts; write one a line.")
    return prompts
