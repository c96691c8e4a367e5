"""`lgpl reconstruct`: pictures through a tokenizer, beside their originals."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from lgpl.checkpoints import add_trust
from lgpl.codes import ImageSize, in_pixels, to_image_size
from lgpl.commands.parser import ArgumentParser
from lgpl.data.transforms import center_crop, normalize, open_image, to_uint8
from lgpl.errors import UserError
from lgpl.generator.module import PERCEPTUAL
from lgpl.image_files import grid, image_path, save
from lgpl.inference import usable_device
from lgpl.metrics import Similarity
from lgpl.tokenizer import Autoencoder, TokenizerModule
from lgpl.training import load_module

LARGEST = 1024  # pixels of a side; attention's memory grows with the fourth power of it
SMALLEST = 8  # SSIM's window
FOR_LPIPS = 32  # what its nets halve several times


def parser() -> ArgumentParser:
    p = ArgumentParser(
        prog="lgpl reconstruct",
        description="Pictures through a tokenizer and back: originals at the left, reconstructions "
        "at the right, with PSNR, SSIM and LPIPS.",
    )
    p.add_argument("pictures", nargs="+", help="JPEG, PNG, WebP or GIF")
    p.add_argument("out", help="picture to write")
    p.add_argument("--checkpoint", required=True, help="checkpoint of a tokenizer")
    add_trust(p)
    p.add_argument(
        "--image-size", type=int, nargs="+",
        help="side of a centre crop, or its height and width; the whole picture by default",
    )  # fmt: skip
    p.add_argument("--lpips", choices=["vgg", "alex", "none"], default="vgg", help="its net")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return p


def main(args: list[str]) -> None:
    options = parser().parse_args(args)
    out = image_path(options.out)
    device = usable_device(options.device)
    module = load_module(options.checkpoint, "tokenizer", (PERCEPTUAL,), options.trust).to(device)
    assert isinstance(module, TokenizerModule)
    size = options.image_size and to_image_size(options.image_size, "--image-size")
    originals = [cropped(path, size, module.autoencoder) for path in options.pictures]
    sizes = sorted({picture.size for picture in originals})
    if len(sizes) > 1:
        said = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise UserError(f"The pictures are of different sizes ({said}); give --image-size.")
    pairs = similarity(options.lpips, min(sizes[0])).to(device)
    shown, found = [], []
    for picture in originals:
        image = normalize(to_uint8(picture)[None]).to(device)
        with torch.inference_mode():
            rebuilt = module(image).float().clamp(-1, 1)
        pairs.update(image, rebuilt)
        found.append(pairs.compute())
        pairs.reset()
        shown += [image.cpu(), rebuilt.cpu()]
    for path, figures in zip(options.pictures, found, strict=True):
        print(f"{path}: {told(figures)}")
    if len(found) > 1:
        means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        print(f"mean of {len(found)}: {told(means)}")
    save(grid(torch.cat(shown), columns=2), out)
    print(f"{out}: originals at the left")


def cropped(path: str, size: ImageSize | None, tokenizer: Autoencoder) -> Image.Image:
    """The image of a file, its middle cut out to a size that the tokenizer takes.

    Args:
        size: as it is asked for; by default the image's own, less what is no whole code.
    """
    image = opened(path)
    if size is not None:
        if not SMALLEST <= min(size) <= max(size) <= LARGEST:
            raise UserError(
                f"--image-size must be from {SMALLEST} to {LARGEST} pixels, got {in_pixels(size)}."
            )
        try:
            tokenizer.layout(*size)
        except UserError as error:
            raise UserError(f"--image-size: {error}") from error
        return center_crop(image, size)
    multiple = getattr(tokenizer, "downsampling", 1)
    width, height = (side - side % multiple for side in image.size)
    smallest = max(multiple, SMALLEST)
    if min(width, height) < smallest or max(width, height) > LARGEST:
        raise UserError(
            f"{path} is of {image.width}x{image.height} pixels, and a side should have "
            f"{smallest} to {LARGEST}; give --image-size."
        )
    tokenizer.layout(height, width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def opened(path: str) -> Image.Image:
    """The RGB picture of a file."""
    try:
        return open_image(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}).") from error


def similarity(lpips: str, side: int) -> Similarity:
    """Without LPIPS where its weights cannot be had, or a side has too few pixels for its nets: the
    picture is what was asked for."""
    if lpips != "none":
        try:
            if side < FOR_LPIPS:
                raise UserError(f"it needs sides of {FOR_LPIPS} pixels or more.")
            return Similarity(lpips)
        except UserError as error:
            print(f"lgpl: no LPIPS: {error}", file=sys.stderr)
    return Similarity(None)


def told(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
