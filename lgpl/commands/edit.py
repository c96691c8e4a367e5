"""`lgpl edit`: an image, part of which is drawn anew. The codes under the mask are drawn, the
others are given; outside the mask every pixel stays.

A mask is an image of the same size, whose transparent part is drawn, or if nothing is transparent
its bright part; a rectangle LEFT,TOP,RIGHT,BOTTOM in pixels; or `outside`, for a larger canvas
around the image."""

from __future__ import annotations  # or they would import torch

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lgpl import inference
from lgpl.commands import parsing
from lgpl.commands.sample import chosen
from lgpl.errors import UserError, as_user_error

if TYPE_CHECKING:
    from PIL import Image

OUTSIDE = "outside"


def parser() -> parsing.ArgumentParser:
    p = parsing.ArgumentParser(prog="lgpl edit", description=__doc__)
    p.add_argument("image", help="JPEG, PNG, WebP or GIF; the model sees its centre crop")
    p.add_argument("out", help="image to write, of the given one's size; a grid of several")
    parsing.add_generator(p)
    mask = f"what is drawn: an image, LEFT,TOP,RIGHT,BOTTOM, or {OUTSIDE}"
    p.add_argument("--mask", required=True, help=mask)
    scale = f"with --mask {OUTSIDE}: the share of the canvas that the image takes, such as 0.5"
    p.add_argument("--scale", type=float, help=scale)
    parsing.add_ways(p, "what the whole image shows", 1, "ways to draw it")
    hard = "a hard edge: without it what is drawn fades into what is kept, inside the mask"
    p.add_argument("--no-blend", action="store_true", help=hard)
    parsing.add_sampling(p)
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    parsing.sampling_of(options)  # a mistake is said before anything is loaded
    parsing.require_positive(options, "count")
    is_outside = options.mask == OUTSIDE
    if options.scale is not None and not (is_outside and 0 < options.scale <= 1):
        accepted = f"> 0 and <= 1, and needs --mask {OUTSIDE}"
        raise UserError(f"--scale must be {accepted}, got {options.scale}.")
    from lgpl.data.codecs import on_white
    from lgpl.data.transforms import to_image
    from lgpl.image_files import grid, image_path, save
    from lgpl.inference import editing

    out = image_path(options.out)
    whole = on_white(still(options.image))
    mask = None if is_outside else read_mask(options.mask, whole.size)
    where = (options.checkpoint, options.tokenizer, inference.usable_device(options.device))
    decoder = parsing.decoder_of(options)
    module = inference.load_generator(*where, trust=options.trust, decoder=decoder)
    shape = module.image_size
    prompts = chosen(module.model.condition, options.prompt, options.label, options.count)
    try:
        if mask is None:
            at_top = module.decoder.in_order  # which can go on below
            whole, mask = editing.around(whole, shape, options.scale, at_top)
            box = (0, 0, *whole.size)
        else:
            box = editing.middle(whole.size, shape)
            check_within(mask, box)
        edit = editing.edit(module, whole.crop(box), mask.crop(box))
    except UserError as error:
        raise UserError(f"--mask: {error}") from error
    count = int((edit.given < 0).sum())
    sampling = parsing.sampling_of(options, module.sampling.within(count))
    requests = inference.requests_for(prompts, sampling, options.seed, edit.given)
    sink = inference.ImageList()
    inference.draw_into(module, requests, sink, options.count)
    images = []
    for image in sink.images():
        images.append(whole.copy())
        images[-1].paste(edit.over(to_image(image), blend=not options.no_blend), box)
    if len(images) == 1:
        save(images[0], out)
    else:
        captions = ["given", *(f"seed {request.seed}" for request in requests)]
        save(grid([whole, *images], captions), out)
    drawn = parsing.in_words(len(requests), options.seed, sampling, module.decoder.summary())
    print(f"{out}: {count} of {len(edit.given)} codes drawn anew, {drawn}")


def still(path: str) -> Image.Image:
    """The image of a file, RGB or RGBA; a UserError where it is an animation."""
    from lgpl.data.codecs import open_layers

    with as_user_error(f"{path} cannot be used", OSError, ValueError):
        return open_layers(Path(path).read_bytes())


def read_mask(given: str, size: tuple[int, int]) -> Image.Image:
    """What --mask gives, for an image of that width and height."""
    from PIL import Image

    from lgpl.inference import editing

    if not re.fullmatch(r"-?\d+(,-?\d+)+", given):
        mask = still(given)
        try:
            editing.check_size(mask, size)
        except UserError as error:
            raise UserError(f"--mask: {given}: {error}") from error
        return editing.hole(mask) or editing.bright(mask)
    width, height = size
    left, top, right, bottom = [*map(int, given.split(",")), 0, 0][:4]
    within = 0 <= left < right <= width and 0 <= top < bottom <= height
    if given.count(",") != 3 or not within:
        accepted = f"LEFT,TOP,RIGHT,BOTTOM within the image's 0,0,{width},{height}"
        raise UserError(f"--mask must be {accepted}, got {given}.")
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    return mask


def check_within(mask: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Raise a UserError where the mask covers what the model does not see of the image."""
    outside = mask.copy()
    outside.paste(0, box)
    if outside.getbbox():
        seen = ",".join(map(str, box))
        raise UserError(f"the model sees {seen} of the image, and the mask reaches beyond it.")
