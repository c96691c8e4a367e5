"""The file that an image is sent as: its format, quality and size."""

import io
import re
from dataclasses import dataclass

from PIL import Image

LARGEST_SIDE = 2048  # pixels of an image that is enlarged
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}  # by format
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)

Size = tuple[int, int]  # width and height, the order in which OpenAI's `size` has them


@dataclass(frozen=True)
class Form:
    """What an image is encoded as."""

    format: str = "png"  # a key of `TYPES`
    quality: int = 100  # of jpeg and webp, from 0 to 100; png is lossless
    size: Size | None = None  # to scale to by Lanczos; None is the model's own

    def encode(self, image: Image.Image) -> bytes:
        """The bytes of the file."""
        if self.size not in (None, image.size):
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        # Colours at half the resolution, JPEG's default, show in images as small as these.
        options = {"jpeg": {"quality": self.quality, "subsampling": 0}}
        options |= {"webp": {"quality": self.quality}}
        buffer = io.BytesIO()
        image.save(buffer, self.format, **options.get(self.format, {}))
        return buffer.getvalue()


def parse_size(text: str | None, own: Size) -> Size | None:
    """The width and height that `size` asks for, of a model's `own`; None where it is refused: its
    shape must be the model's, so that scaling distorts nothing."""
    if text in (None, "auto", show_size(own)):
        return own
    match = SIZE.fullmatch(text or "")
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    keeps_shape = width * own[1] == height * own[0]
    return (width, height) if keeps_shape and max(width, height) <= LARGEST_SIDE else None


def accepted_sizes(own: Size) -> str:
    """What `parse_size` accepts, in words."""
    if own[0] == own[1]:
        return f"auto, {show_size(own)} or any square up to {LARGEST_SIDE}x{LARGEST_SIDE}"
    whole = f"{show_size(own)} or a multiple of it with the same aspect ratio"
    return f"auto, {whole}, up to {LARGEST_SIDE} a side"


def show_size(size: Size) -> str:
    """As OpenAI writes it."""
    return f"{size[0]}x{size[1]}"
