"""`lgpl sample`: pictures from a generator's checkpoint."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from lgpl.checkpoints import add_trust, load_module
from lgpl.commands.many import claim, halved, settings, write_many
from lgpl.commands.parser import ArgumentParser
from lgpl.commands.sampling import add_sampling, sampling_of
from lgpl.data.transforms import to_image
from lgpl.errors import UserError
from lgpl.generator import GeneratorModule, Sampling
from lgpl.generator.conditions import Inputs
from lgpl.generator.packing import pack_weights
from lgpl.generator.quantization import int8_weights
from lgpl.pictures import grid, picture_path, save

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


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
    out = Path(options.out) if many else picture_path(options.out)
    prompts = list(options.prompt) + (_lines(options.prompts) if options.prompts else [])
    device = usable_device(options.device)

    module = load_generator(
        options.checkpoint, options.tokenizer, device, DTYPES[options.dtype], options.int8,
        options.trust,
    )  # fmt: skip
    labels = options.label
    if options.balanced:
        every = module.model.condition.prompts()
        if every is None:
            raise UserError("--balanced: the checkpoint has no classes, whose number is known.")
        labels = [every[i % len(every)] for i in range(options.balanced)]
    count = 1 if options.balanced else options.count
    if many:
        wanted = subjects(module, prompts, labels, count)
        claim(out, settings(options, wanted, sampling))
        drawn = write_many(module, wanted, sampling, options.seed, options.batch_size, out)
        print(f"{out}: {drawn} pictures drawn of {len(wanted)}, {sampling}")
        return
    captions = subjects(module, prompts, labels, count)
    seeds = [options.seed + i for i in range(len(captions))]
    inputs = module.model.condition.parse_each(captions)
    images = sample(module, inputs, sampling, seeds, options.batch_size)
    if len(images) == 1:
        save(to_image(images[0]), out)
    else:
        save(grid(images, captions, options.columns, options.tile), out)
    print(f"{out}: {len(images)} pictures, seeds {seeds[0]} to {seeds[-1]}, {sampling}")


def usable_device(name: str) -> str:
    """`auto` is the GPU where there is one; any other name is tried at once."""
    if name == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: {name} cannot be used here ({reason}).") from error
    return name


def load_generator(
    path: str,
    tokenizer: str | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    trust: Sequence[str] = (),
) -> GeneratorModule:
    """The generator of a checkpoint with its tokenizer, ready to sample and for nothing else.

    Args:
        dtype: of the generator's weights.
        int8: keep them in 8 bits.
        trust: packages whose classes the checkpoints may name beside lgpl's own.
    """
    module = load_module(path, "generator", trust=trust)
    assert isinstance(module, GeneratorModule)
    if tokenizer is not None:
        module.use_tokenizer(tokenizer)
    elif module.tokenizer_path is None:
        raise UserError(f"{path} names no tokenizer; give its checkpoint with --tokenizer.")
    module.to(device)
    module.check_tokenizer()
    module.model.to(dtype)
    if int8:
        int8_weights(module.model)
    pack_weights(module.model)
    return module


def subjects(
    module: GeneratorModule, prompts: list[str], labels: list[str], count: int
) -> list[str]:
    """The prompt of each picture, `count` of each.

    Args:
        prompts: given as --prompt.
        labels: given as --label.

    Raises:
        UserError: none is given as the model's condition wants it.
    """
    given = {"prompt": prompts, "label": labels}
    option = module.model.condition.option
    wanted, (other,) = given.pop(option), given.values()
    if other or not wanted:
        raise UserError(f"The checkpoint takes --{option}, not --{next(iter(given))}.")
    return [prompt for prompt in wanted for _ in range(count)]


def sample(
    module: GeneratorModule,
    inputs: Inputs,
    sampling: Sampling,
    seeds: list[int],
    batch_size: int,
    prompt: torch.Tensor | None = None,
) -> torch.Tensor:
    """Images [N, 3, H, W] on the CPU, drawn `batch_size` at a time with a progress bar; fewer where
    the device's memory does not hold them.

    Args:
        prompt: codes [n] that all images begin with.
    """
    images = []
    count = module.model.code_count
    if prompt is not None:
        count -= len(prompt)
    with tqdm(total=len(seeds) * count, unit="token", desc="sampling", leave=False) as bar:
        start = 0
        while start < len(seeds):
            part = slice(start, start + batch_size)
            n, before = len(seeds[part]), bar.n
            try:
                drawn = module.sample(
                    {name: value[part] for name, value in inputs.items()},
                    sampling,
                    seeds[part],
                    progress=functools.partial(_advance, bar, n),
                    prompt=None if prompt is None else prompt.expand(n, -1),
                )
            except torch.OutOfMemoryError as error:
                bar.n, batch_size = before, halved(n, error)
                continue
            images.append(drawn.cpu())
            start += n
    return torch.cat(images)


def _advance(bar: tqdm, images: int, *_: object) -> None:
    bar.update(images)


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path} cannot be read as text ({error}).") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts: {path} holds no prompts; write one a line.")
    return prompts
