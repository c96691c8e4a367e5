"""Pictures to tensors: crop, flip, to [-1, 1]; Pillow and torch, no torchvision."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

LARGEST_RATIO = 1 / 0.8  # of the short side to the crop, LlamaGen's training (arXiv 2406.06525)


def open_image(data: bytes, at_least: int) -> Image.Image:
    """An RGB picture, upright, transparent parts on white.

    Args:
        data: an encoded picture.
        at_least: the side that will be needed; a large JPEG is decoded no larger than twice that.

    Raises:
        ValueError: the bytes are no picture, or one of absurd size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.draft("RGB", (2 * at_least, 2 * at_least))
            image = ImageOps.exif_transpose(image)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except Exception as error:  # Pillow raises whatever its codecs raise
        raise ValueError(f"the picture does not decode ({error})") from error


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture as its header gives them.

    Raises:
        ValueError: the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception as error:
        raise ValueError(f"the picture does not decode ({error})") from error


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W], float32 in [-1, 1]."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def to_image(tensor: Tensor) -> Image.Image:
    """The picture of [3, H, W] in [-1, 1]; what lies outside is clipped."""
    array = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` of the picture whose short side was scaled to `size`."""
    return _crop(_scale_short_side(image, size), size, 0.5, 0.5)


def random_crop(
    image: Image.Image, size: int, rng: random.Random, largest: float = LARGEST_RATIO
) -> Image.Image:
    """A random `size` x `size` of the picture whose short side was scaled to [1, largest] x
    size."""
    short = rng.randint(size, round(size * largest))
    return _crop(_scale_short_side(image, short), size, rng.random(), rng.random())


def _scale_short_side(image: Image.Image, short: int) -> Image.Image:
    if min(image.size) == short:
        return image
    ratio = short / min(image.size)
    width, height = (max(short, round(side * ratio)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _crop(image: Image.Image, size: int, x: float, y: float) -> Image.Image:
    left, top = round((image.width - size) * x), round((image.height - size) * y)
    return image.crop((left, top, left + size, top + size))
