"""`lgpl sample`: images of prompts or classes, from a generator's checkpoint.

Into a FOLDER/ they go as files: by their numbers, with captions.txt; of the prompts of GenEval
(.jsonl) and DPG-bench (a folder of .txt) as those benchmarks' own scorers read them, four of each.
"""

from __future__ import annotations  # or they would import torch

import os
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgpl import generator, inference
from lgpl.commands import parsing
from lgpl.errors import UserError
from lgpl.text import prompts as prompt_files

if TYPE_CHECKING:
    from lgpl.inference.sinks import ImageFolder

BENCHMARK_IMAGES = 4  # of each prompt of GenEval and DPG-bench


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl sample", description=__doc__)
    parsing.add_generator(p)
    p.add_argument("--prompt", nargs="+", default=[], help="what to show; several make a grid")
    lines = "text file, one a line; .csv or .tsv; .jsonl of GenEval; folder of DPG-bench"
    p.add_argument("--prompts", help=lines)
    p.add_argument("--prompt-column", default=prompt_files.COLUMN, help="of a .csv or .tsv")
    p.add_argument("--label", nargs="+", type=str, default=[], help="classes, by number or name")
    count = "images of each prompt or class; 1, or 4 of a benchmark's into FOLDER/, by default"
    p.add_argument("--count", type=int, help=count)
    p.add_argument("--balanced", type=int, help="images over all classes in turn")
    p.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    p.add_argument("--batch-size", type=int, default=16, help="images drawn together")
    dtype = "of the generator's weights, and on a GPU of its cache"
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

    out = Path(options.out) if many else image_path(options.out)
    file = prompt_files.Prompts([])
    if options.prompts:
        file = prompt_files.read(options.prompts, options.prompt_column)
    if many and file.layout and options.prompt:
        raise UserError(f"--prompt: {options.prompts} is a benchmark's; leave other prompts out.")
    each = options.count or (BENCHMARK_IMAGES if many and file.layout else 1)
    where = (options.checkpoint, options.tokenizer, inference.usable_device(options.device))
    dtype = getattr(torch, inference.DTYPES[options.dtype])
    decoder = parsing.decoder_of(options)
    module = inference.load_generator(*where, dtype, options.int8, options.trust, decoder)
    sampling = parsing.sampling_of(options, module.sampling)
    module.check_sampling(sampling)
    condition = module.model.condition
    if options.balanced:
        every = condition.prompts()
        if every is None:
            raise UserError("--balanced: the checkpoint has no classes, whose number is known.")
        prompts = list(islice(cycle(every), options.balanced))
    else:
        prompts = chosen(condition, [*options.prompt, *file.texts], options.label, each)
    requests = inference.requests_for(prompts, sampling, options.seed)
    if many:
        rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
        drawn_by = parsing.settings(options, prompts, sampling, "dtype", "int8", "decoder")
        captions = prompts if condition.option == "prompt" else []
        folder = folder_for(file, out, drawn_by, captions, each)
        group = each if file.layout else 1
        share = (options.batch_size, rank, world, group)
        cut = bool(file.rows or file.names)  # a data set's prompts, which nobody can shorten
        if cut and rank == 0:
            warn_of_long(condition, file.texts)
        drawn = inference.draw_into(module, requests, folder, *share, cut)
        mine = len(inference.share_of(requests, rank, world, group))
        there = f" ({drawn} drawn, the others were there)" if drawn < mine else ""
        said = parsing.in_words(len(requests), options.seed, sampling, module.decoder.summary())
        print(f"{out}: {said}{there}")
        return
    sink = inference.ImageList()
    inference.draw_into(module, requests, sink, options.batch_size)
    images = sink.images()
    if len(images) == 1:
        save(to_image(images[0]), out)
    else:
        save(grid(images, prompts, options.columns, options.tile), out)
    said = parsing.in_words(len(images), options.seed, sampling, module.decoder.summary())
    print(f"{out}: {said}")


def folder_for(
    file: prompt_files.Prompts,
    out: Path,
    settings: dict[str, Any],
    captions: Sequence[str],
    each: int,
) -> ImageFolder:
    """In the layout of the file's benchmark, if it has one."""
    if file.layout == prompt_files.GENEVAL:
        return inference.GenEvalFolder(out, settings, file.rows, each)
    if file.layout == prompt_files.DPG:
        return inference.GridFolder(out, settings, file.names, each)
    return inference.ImageFolder(out, settings, captions)


def warn_of_long(condition: generator.Condition, prompts: Sequence[str]) -> None:
    """Say how many prompts are not drawn as they are, but cut as captions are in training."""
    cut = 0
    for prompt in dict.fromkeys(prompts):
        try:
            condition.check(prompt)
        except UserError:
            cut += 1
    if cut:
        said = f"{cut} of {len(prompts)} prompts are longer than the model reads, and are cut"
        print(f"lgpl: {said}.", file=sys.stderr)


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
