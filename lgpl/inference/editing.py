"""Part of an image drawn anew: from a mask to the codes that are given, and from what is drawn to
the original with it in place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from lgpl.codes import ImageSize
from lgpl.data.codecs import MAX_PIXELS, on_white
from lgpl.data.transforms import center_crop, normalize, to_uint8
from lgpl.errors import UserError
from lgpl.generator.module import GeneratorModule

SEAM = 3  # pixels, inside the mask, over which what is drawn replaces the original
HALF = 128  # of 255: what is more transparent, or brighter, is drawn anew

Size = tuple[int, int]  # width and height, pixels
Box = tuple[int, int, int, int]  # left, top, right and bottom, pixels


@dataclass(frozen=True, eq=False)
class Edit:
    """An image, and what of it is drawn anew."""

    original: Image.Image  # RGB, of the model's shape, at a resolution of its own
    mask: Image.Image  # its size, L: 255 is drawn, 0 is kept
    given: Tensor  # codes [N] in the flat order, -1 at those to be drawn
    rows: int  # of codes

    def over(self, drawn: Image.Image, blend: bool = True) -> Image.Image:
        """The original, and under the mask what was drawn, scaled to its size; outside of the mask
        every pixel is the original's. Without `blend` every one inside is drawn."""
        drawn = _scaled(drawn, self.original.size)
        code = self.original.height // self.rows  # pixels; a seam is narrow in a hole so small
        seam = min(SEAM, code // 5) if blend else 0
        return Image.composite(drawn, self.original, _soft(self.mask, seam))

    def scaled(self, size: Size) -> Edit:
        """The same with an original of another size; a pixel of which anything is masked is."""
        if size == self.original.size:
            return self
        mask = Image.fromarray(covered(self.mask, size[1], size[0]).numpy().astype(np.uint8) * 255)
        return replace(self, original=_scaled(self.original, size), mask=mask)


def edit(module: GeneratorModule, original: Image.Image, mask: Image.Image) -> Edit:
    """The edit of an RGB image of the model's shape and a mask of its size, see `Edit`; raises a
    UserError where nothing is masked, or the model cannot draw such a part."""
    layout = module.model.layout
    if layout.rows == 1:
        raise UserError(f"the model's codes, {layout}, stand for no part of an image.")
    drawn = covered(mask, layout.rows, layout.columns)
    if not drawn.any():
        raise UserError("the mask has no hole, so there is nothing to draw.")
    return Edit(original, mask, keep(module, codes_of(module, original), drawn), layout.rows)


def codes_of(module: GeneratorModule, image: Image.Image) -> Tensor:
    """Codes [N] in the flat order, on the CPU, of the centre crop of an RGB image."""
    pixels = normalize(to_uint8(center_crop(image, module.image_size))[None])
    with torch.no_grad():
        codes = module.tokenizer.autoencoder.encode(pixels.to(module.device))
    return module.model.layout.flatten(codes)[0].cpu()


def keep(module: GeneratorModule, codes: Tensor, drawn: Tensor) -> Tensor:
    """Codes [N] with -1 at the places that are to be drawn [rows, columns]; raises a UserError
    where the decoder cannot honour the others."""
    layout = module.model.layout
    given = codes.masked_fill(drawn.flatten().repeat_interleave(layout.depth), -1)
    module.decoder.check_given(layout, given[None])
    return given


def covered(mask: Image.Image, rows: int, columns: int) -> Tensor:
    """Equal parts [rows, columns] of an image of which the mask covers a pixel."""
    pixels = np.asarray(mask) > 0
    height, width = pixels.shape
    strips = np.stack([pixels[_span(row, rows, height)].any(0) for row in range(rows)])
    places = [strips[:, _span(c, columns, width)].any(1) for c in range(columns)]
    return torch.from_numpy(np.stack(places, 1))


def hole(image: Image.Image) -> Image.Image | None:
    """The mask that an image's transparent part is; None where it has none."""
    if image.mode != "RGBA":
        return None
    clear = _threshold(image.getchannel("A").point(lambda alpha: 255 - alpha))
    return clear if clear.getbbox() else None


def bright(image: Image.Image) -> Image.Image:
    """The mask that an image's bright part is."""
    return _threshold(on_white(image).convert("L"))


def check_size(mask: Image.Image, size: Size) -> None:
    """Raise a UserError where a mask is not of an image's size."""
    if mask.size != size:
        wanted, got = (f"{width}x{height}" for width, height in (size, mask.size))
        raise UserError(f"the mask must be as large as the image, {wanted}, got {got}.")


def middle(size: Size, shape: ImageSize) -> Box:
    """The largest part of a shape in the middle of an image of that width and height."""
    (width, height), (tall, long) = size, shape
    inner = min(width, max(1, round(height * long / tall)))
    upper = min(height, max(1, round(width * tall / long)))
    left, top = (width - inner) // 2, (height - upper) // 2
    return left, top, left + inner, top + upper


def around(
    image: Image.Image, shape: ImageSize, scale: float | None, at_top: bool
) -> tuple[Image.Image, Image.Image]:
    """An RGB image within a canvas of the model's shape, and the mask of what lies outside.

    The image keeps its pixels; the canvas is larger. The image's longer side, measured by the
    canvas's, is `scale` of it; by default the model sees the image's own pixels, or where it is
    larger the image fits. It lies in the middle, or `at_top`, its edges drawn out to the canvas's.
    """
    fit = min(shape[1] / image.width, shape[0] / image.height)
    factor = min(1.0, fit) if scale is None else fit * scale
    width = max(image.width, round(shape[1] / factor))
    height = max(image.height, round(shape[0] / factor))
    if width * height > MAX_PIXELS:
        most = f"more than {MAX_PIXELS} pixels; a larger --scale gives a smaller one"
        raise UserError(f"the canvas of {width}x{height} has {most}.")
    left = (width - image.width) // 2
    top = 0 if at_top else (height - image.height) // 2
    right, bottom = left + image.width, top + image.height
    if (width, height) == image.size:
        raise UserError("the image fills its canvas; --scale below 1 leaves room around it.")
    margins = ((top, height - bottom), (left, width - right), (0, 0))
    canvas = Image.fromarray(np.pad(np.asarray(image), margins, mode="edge"))
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, right, bottom))
    return canvas, mask


def _span(index: int, parts: int, length: int) -> slice:
    """The pixels of which at least some belongs to one of so many equal parts."""
    return slice(index * length // parts, -(-(index + 1) * length // parts))


def _scaled(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _threshold(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 * (value >= HALF))


def _soft(mask: Image.Image, seam: int) -> Image.Image:
    """A mask that rises from its edge, inwards, over so many pixels."""
    total = np.zeros(mask.size[::-1], np.uint16)
    for _ in range(seam):
        total += np.asarray(mask)
        mask = mask.filter(ImageFilter.MinFilter(3))
    return Image.fromarray(((total + np.asarray(mask)) // (seam + 1)).astype(np.uint8))
