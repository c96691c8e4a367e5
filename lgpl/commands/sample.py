"""`lgpl sample`: images of prompts or classes, from a generator's checkpoint."""

from __future__ import annotations  # or they would import torch

import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from lgpl import generator, inference
from lgpl.commands import parsing
from lgpl.errors import UserError


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl sample", description=__doc__)
    parsing.add_generator(p)
    p.add_argument("--prompt", nargs="+", default=[], help="what to show; several make a grid")
    p.add_argument("--prompts", help="a text file, one prompt a line")
    p.add_argument("--label", nargs="+", type=str, default=[], help="classes, by number or name")
    p.add_argument("--count", type=int, default=1, help="images of each prompt or class")
    p.add_argument("--balanced", type=int, help="images over all classes in turn")
    p.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    p.add_argument("--batch-size", type=int, default=16, help="images drawn together")
    dtype = "of the generator's weights and its cache; the tokenizer decodes in float32"
    p.add_argument("--dtype", default="float32", choices=list(inference.DTYPES), help=dtype)
    p.add_argument("--int8", action="store_true", help="keep the weights in 8 bits (torchao)")
    p.add_argument("--out", required=True, help="image to write, a grid of several, or FOLDER/")
    p.add_argument("--columns", type=int, default=8, help="images in a row of the grid")
    p.add_argument("--tile", type=int, help="pixels of an image in the grid; its own by default")
    parsing.add_sampling(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    parsing.sampling_of(options)  # a mistake is said before anything is loaded
    parsing.require_positive(options, "count", "balanced", "batch_size", "columns", "tile")
    many = options.out.endswith("/") or Path(options.out).is_dir()
    if options.balanced and (not many or options.label):
        raise UserError("--balanced: takes classes in turn into --out FOLDER/, without --label.")
    import torch

    from lgpl.data.transforms import to_image
    from lgpl.image_files import grid, image_path, save
    from lgpl.text.captions import read_prompts

    out = Path(options.out) if many else image_path(options.out)
    given = list(options.prompt)
    if options.prompts:
        given += read_prompts(options.prompts)
    where = (options.checkpoint, options.tokenizer, inference.usable_device(options.device))
    dtype = getattr(torch, inference.DTYPES[options.dtype])
    module = inference.load_generator(*where, dtype, options.int8, options.trust)
    sampling = parsing.sampling_of(options, module.sampling)
    module.check_sampling(sampling)
    if options.balanced:
        every = module.model.condition.prompts()
        if every is None:
            raise UserError("--balanced: the checkpoint has no classes, whose number is known.")
        prompts = list(islice(cycle(every), options.balanced))
    else:
        prompts = chosen(module.model.condition, given, options.label, options.count)
    requests = inference.requests_for(prompts, sampling, options.seed)
    if many:
        rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
        drawn_by = parsing.settings(options, prompts, sampling, "dtype", "int8")
        folder = inference.ImageFolder(out, drawn_by)
        drawn = inference.draw_into(module, requests, folder, options.batch_size, rank, world)
        there = (
            f" ({drawn} drawn, the others were there)" if drawn < len(requests[rank::world]) else ""
        )
        print(f"{out}: {parsing.in_words(len(requests), options.seed, sampling)}{there}")
        return
    sink = inference.ImageList()
    inference.draw_into(module, requests, sink, options.batch_size)
    images = sink.images()
    if len(images) == 1:
        save(to_image(images[0]), out)
    else:
        save(grid(images, prompts, options.columns, options.tile), out)
    print(f"{out}: {parsing.in_words(len(images), options.seed, sampling)}")


def chosen(
    condition: generator.Condition, prompts: Sequence[str], labels: Sequence[str], count: int
) -> list[str]:
    """The prompt of each image, `count` of each of those given as --prompt or --label; a UserError
    where the condition takes the other option."""
    given = {"prompt": prompts, "label": labels}
    wanted = given.pop(condition.option)
    ((other, unwanted),) = given.items()
    if unwanted or not wanted:
        instead = f", not --{other}" if unwanted else "; give one at least"
        raise UserError(f"The checkpoint takes --{condition.option}{instead}.")
    return [prompt for prompt in wanted for _ in range(count)]
