"""Images to tensors: decode, crop, to [-1, 1]; Pillow and torch, no torchvision. Evaluation and
code extraction decode in full and crop as the field's reference statistics were made: `open_image`,
then `center_crop` or `ten_crops`. Training is a little less exact, but faster."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgpl.codes import ImageSize
from lgpl.data.codecs import MAX_PIXELS, decode, finish, open_header
from lgpl.data.members import BadSample

LARGEST_RATIO = 1 / 0.8  # of the scaled image to the crop, LlamaGen's training (arXiv 2406.06525)
# For the provenance of metrics.
CENTER_CROP = "centre, ADM's: halved by boxes, then bicubic"
LANCZOS_CROP = "centre, as it is, then Lanczos"
TEN_CROP_SCALES = (1.1, 1.05)  # of the square to the views, LlamaGen's code extraction


def center_crop(image: Image.Image, size: ImageSize) -> Image.Image:
    """The middle of the image that was scaled to cover `size` (height, width), and no more. As
    ADM's reference batches (arXiv 2105.05233) and LlamaGen's own were made, both sides are halved
    by averaging while they are twice as long as wanted, what is left is bicubic."""
    height, width = size
    image = _halved(image, width, height)
    scaled = _covering(image.size, size)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    if scaled[0] * scaled[1] > MAX_PIXELS:  # a line of pixels: other rounding, but bounded memory
        box = _box(image.size, scaled, (left, top), size)
        return image.resize((width, height), Image.Resampling.BICUBIC, box)
    whole = image.resize(scaled, Image.Resampling.BICUBIC)
    return whole.crop((left, top, left + width, top + height))


def lanczos_crop(image: Image.Image, size: ImageSize) -> Image.Image:
    """The middle of the image, as large as it has room for, scaled to `size` (height, width) by
    Lanczos: how images are prepared for FID on COCO, by clean-fid (arXiv 2104.11222) and others."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    inside = round(width * scale), round(height * scale)
    left, top = round((image.width - inside[0]) / 2), round((image.height - inside[1]) / 2)
    middle = image.crop((left, top, left + inside[0], top + inside[1]))
    return middle.resize((width, height), Image.Resampling.LANCZOS)


def pad(image: Image.Image, size: ImageSize) -> Image.Image:
    """The whole image, scaled to fit into `size` (height, width), in the middle of white."""
    height, width = size
    scale = min(width / image.width, height / image.height)
    inside = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = _halved(image, *inside)
    padded = Image.new("RGB", (width, height), "white")
    corner = (width - inside[0]) // 2, (height - inside[1]) // 2
    padded.paste(image.resize(inside, Image.Resampling.BICUBIC), corner)
    return padded


def _halved(image: Image.Image, width: int, height: int) -> Image.Image:
    """By averaging, while both sides are twice as long as wanted."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def ten_crops(image: Image.Image, size: ImageSize, scale: float) -> list[Image.Image]:
    """The views that LlamaGen takes codes from (arXiv 2406.06525; its `extract_codes_c2i.py`, with
    `TEN_CROP_SCALES`): top left, top right, bottom left, bottom right, centre, then the same
    five flipped horizontally. They lie in the centre crop of `scale` x `size` (height, width): the
    ends of a long image, which no evaluation looks at, are not learned from either."""
    height, width = size
    middle = center_crop(image, (int(height * scale), int(width * scale)))
    right, bottom = middle.width - width, middle.height - height
    corners = (0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)
    views = [middle.crop((left, top, left + width, top + height)) for left, top in corners]
    return views + [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]


def random_crop(
    data: bytes, size: ImageSize, rng: random.Random, largest: float = LARGEST_RATIO
) -> Image.Image:
    """A random crop of `size` (height, width) of the encoded image, as `open_image` would give it,
    that was scaled to cover between 1 and `largest` times `size`. For training only: a JPEG is
    decoded at the lowest resolution of its DCT that is enough, and one resampling both scales and
    crops. The crop lies where it would, but its pixels differ a little."""
    image = open_header(data)
    full, (height, width) = image.size, size
    short = rng.randint(min(size), round(min(size) * largest))
    covered = round(height * short / min(size)), round(width * short / min(size))
    scaled = _covering(full, covered)
    corner = rng.randint(0, scaled[0] - width), rng.randint(0, scaled[1] - height)
    box = whole = _box(full, scaled, corner, size)
    drafted = image.draft("RGB", covered[::-1])
    if drafted:
        # Pillow's box, and not the size, which is rounded up to whole pixels.
        reduction = full[0] / drafted[1][2]
        left, top, right, bottom = (edge / reduction for edge in box)
        box = left, top, right, bottom
    try:
        pixels = decode(image)
    except BadSample:  # such as a lossless JPEG, which has no DCT
        if not drafted:
            raise
        pixels, box = decode(open_header(data)), whole
    # Bicubic is a sixth faster than Lanczos, and what LlamaGen trains with. The gap shrinks large
    # images of other formats first, as the draft does a JPEG.
    return finish(pixels.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=2.0))


def to_uint8(image: Image.Image) -> Tensor:
    """[3, H, W] of an RGB image, uint8 in 0..255: a quarter of the bytes of `normalize`'s."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def normalize(pixels: Tensor) -> Tensor:
    """uint8 of any shape to float32 in [-1, 1], with the same bits on every device."""
    # A product after the difference: a GPU replaces the division by a constant, and a compiler
    # fuses a product with the sum after it, and either gives other bits.
    return pixels.float().sub_(127.5).mul_(1 / 127.5)


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image as its header gives them, before it is turned upright;
    raises as `open_image`."""
    return open_header(data).size


def to_image(tensor: Tensor) -> Image.Image:
    """The image of [3, H, W] in [-1, 1]; what lies outside is clipped."""
    array = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def _covering(full: tuple[int, int], size: ImageSize) -> tuple[int, int]:
    """Width and height to which an image is scaled so that it just covers `size`."""
    (width, height), (wanted_height, wanted_width) = full, size
    if width * wanted_height <= height * wanted_width:
        return wanted_width, max(wanted_height, round(height * wanted_width / width))
    return max(wanted_width, round(width * wanted_height / height)), wanted_height


def _box(
    full: tuple[int, int], scaled: tuple[int, int], corner: tuple[int, int], size: ImageSize
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a crop of the scaled image in the image's own pixels: to be
    resampled without the scaled image, which of one of 20000 x 1 would be of 1.3 gigapixels."""
    (left, top), (width, height), (scaled_width, scaled_height) = corner, full, scaled
    return (  # each product before its quotient, lest rounding put an edge outside the image
        left * width / scaled_width,
        top * height / scaled_height,
        (left + size[1]) * width / scaled_width,
        (top + size[0]) * height / scaled_height,
    )


CROPS = {CENTER_CROP: center_crop, LANCZOS_CROP: lanczos_crop}
