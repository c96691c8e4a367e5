"""`lgpl reconstruct`: images through a tokenizer and back, originals at the left, reconstructions
at the right, with PSNR, SSIM and LPIPS."""

from __future__ import annotations  # or they would import torch

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lgpl import inference, metrics
from lgpl.checkpoints import add_trust
from lgpl.codes import ImageSize, in_pixels, to_image_size
from lgpl.commands.parsing import ArgumentParser
from lgpl.errors import UserError, as_user_error

if TYPE_CHECKING:
    from PIL import Image

    from lgpl.tokenizer import Autoencoder

LARGEST = 1024  # pixels of a side; attention's memory grows with the fourth power of it
SMALLEST = 8  # SSIM's window
FOR_LPIPS = 32  # what its nets halve several times


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="lgpl reconstruct", description=__doc__)
    p.add_argument("images", nargs="+", help="JPEG, PNG, WebP or GIF")
    p.add_argument("out", help="image to write")
    p.add_argument("--checkpoint", required=True, help="checkpoint of a tokenizer")
    add_trust(p)
    size = "side of a centre crop, or its height and width; the whole image by default"
    p.add_argument("--image-size", type=int, nargs="+", help=size)
    p.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its net")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    import torch

    from lgpl.data.transforms import normalize, to_uint8
    from lgpl.generator.module import PERCEPTUAL
    from lgpl.image_files import grid, image_path, save
    from lgpl.tokenizer import TokenizerModule
    from lgpl.training import load_module

    out = image_path(options.out)
    device = inference.usable_device(options.device)
    module = load_module(options.checkpoint, "tokenizer", (PERCEPTUAL,), options.trust).to(device)
    assert isinstance(module, TokenizerModule)
    size = options.image_size and to_image_size(options.image_size, "--image-size")
    originals = [cropped(path, size, module.autoencoder) for path in options.images]
    sizes = sorted({image.size for image in originals})
    if len(sizes) > 1:
        said = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise UserError(f"The images are of different sizes ({said}); give --image-size.")
    pairs = similarity(options.lpips, min(sizes[0])).to(device)
    shown, found = [], []
    for original in originals:
        image = normalize(to_uint8(original)[None]).to(device)
        with torch.inference_mode():
            rebuilt = module(image).float().clamp(-1, 1)
        pairs.update(image, rebuilt)
        found.append(pairs.compute())
        pairs.reset()
        shown += [image.cpu(), rebuilt.cpu()]
    names = list(options.images)
    if len(found) > 1:
        names.append(f"mean of {len(found)}")
        found.append({key: sum(one[key] for one in found) / len(found) for key in found[0]})
    for name, values in zip(names, found, strict=True):
        print(f"{name}: {', '.join(f'{metric} {value:.4g}' for metric, value in values.items())}")
    save(grid(torch.cat(shown), columns=2), out)
    print(f"{out}: originals at the left")


def cropped(path: str, size: ImageSize | None, tokenizer: Autoencoder) -> Image.Image:
    """The image of a file, its middle cut out to a size that the tokenizer takes: by default its
    own, less what is no whole code."""
    image, multiple = opened(path), getattr(tokenizer, "downsampling", 1)
    height, width = size or [side - side % multiple for side in reversed(image.size)]
    if not SMALLEST <= min(height, width) <= max(height, width) <= LARGEST:
        got = f"{in_pixels(size or (image.height, image.width))} of {path}"
        raise UserError(f"--image-size must be from {SMALLEST} to {LARGEST} pixels, got {got}.")
    try:
        tokenizer.layout(height, width)
    except UserError as error:
        raise UserError(f"--image-size: {error}") from error
    if size is not None:
        from lgpl.data.transforms import center_crop

        return center_crop(image, size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def opened(path: str) -> Image.Image:
    """The RGB image of a file."""
    from lgpl.data.codecs import open_image

    with as_user_error(f"{path} cannot be read as an image", OSError, ValueError):
        return open_image(Path(path).read_bytes())


def similarity(lpips: str, side: int) -> metrics.Similarity:
    """Without LPIPS where its weights cannot be had, or a side has too few pixels for its nets: the
    image is what was asked for."""
    if lpips != "none":
        try:
            if side < FOR_LPIPS:
                raise UserError(f"it needs sides of {FOR_LPIPS} pixels or more.")
            return metrics.Similarity(lpips)
        except UserError as error:
            print(f"lgpl: no LPIPS: {error}", file=sys.stderr)
    return metrics.Similarity(None)
